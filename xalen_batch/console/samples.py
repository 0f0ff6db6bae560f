"""The same batch by other means: commands and code to copy."""

import shlex

from fastapi import Request

from xalen_batch.api.http.paths import VERSION
from xalen_batch.models import File

CURL = """\
curl {base}/files -H "Authorization: Bearer $XALEN_API_KEY" \\
  -F purpose=batch -F file=@{shell}
curl {base}/batches -H "Authorization: Bearer $XALEN_API_KEY" \\
  -H "content-type: application/json" \\
  -d '{{"input_file_id": "FILE_ID", "endpoint": "{endpoint}", "completion_window": "24h"}}'"""
PYTHON = """\
from openai import OpenAI

client = OpenAI(base_url="{base}", api_key="xln_…")
file = client.files.create(file=open({name!r}, "rb"), purpose="batch")
batch = client.batches.create(
    input_file_id=file.id, endpoint="{endpoint}", completion_window="24h"
)"""
COMMANDS = """\
xalen-batch validate {shell}
xalen-batch run {shell} -o answers.jsonl"""


def samples(request: Request, file: File | None, endpoint: str) -> list[tuple[str, str, str]]:
    """(label, code, id) of each way."""
    name = "requests.jsonl" if file is None else file.filename
    values = {
        "base": f"{str(request.base_url).rstrip('/')}{VERSION}",
        "name": name,
        "shell": shlex.quote(name),
        "endpoint": endpoint,
    }
    return [
        ("Command line", COMMANDS.format_map(values), "by-command"),
        ("Python, OpenAI's client", PYTHON.format_map(values), "by-python"),
        ("curl", CURL.format_map(values), "by-curl"),
    ]
