"""The attacks of `make attack` in their small size: no caller, tenant or model server can stop the
system or make others wait.
"""

import tempfile
from pathlib import Path

import pytest

from tests.attack import attacks
from tests.attack.system import Size


@pytest.mark.parametrize("name", attacks.names())
def test_the_system_holds(name: str) -> None:
    # A short path: sockets live in it.
    with tempfile.TemporaryDirectory(prefix="xalen-attack-") as folder:
        figures = list(attacks.run(name, Path(folder), Size.SMALL))
    assert figures
    assert [figure for figure in figures if not figure.holds] == []
