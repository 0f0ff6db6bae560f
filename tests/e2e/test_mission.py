"""The mission's sample code, word for word, with the key of this system put in."""

import subprocess
import sys

import pytest

from tests.e2e import processes
from tests.e2e.processes import System

SAMPLE = """
from xalen import XALEN
client = XALEN(api_key="xln_test_…")
response = client.chat.completions.create(
    model="mistral-small-3-1",
    messages=[{"role": "user", "content": "Hello"}],
)
print(response.choices[0].message.content)
"""
QUERY = '{"query": "parcel", "documents": ["A card is declined.", "A parcel is late."]}'
RERANKER = SAMPLE.replace('"mistral-small-3-1"', '"bge-reranker-v2"').replace(
    '"Hello"', repr(QUERY)
)


@pytest.mark.parametrize(("sample", "told"), [(SAMPLE, " "), (RERANKER, '"index":1')])
def test_the_sample_of_the_mission_runs_as_it_stands(
    running_system: System, sample: str, told: str
) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", sample.replace("xln_test_…", running_system.test_key)],
        env=processes.environment(data_dir=running_system.data_dir),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert told in ran.stdout.replace(": ", ":")
