"""One running system for the tests that only use it.

A test that breaks things starts its own with `processes.up`.
"""

import os
from collections.abc import Iterator

import pytest

from tests.e2e import processes, stack
from tests.e2e.processes import System

# It needs a checkout of the version before sealing, which it names (docs/reliability.md).
collect_ignore = [] if "XALEN_TEST_OLD" in os.environ else ["test_upgrade.py"]

# Live keys run on simulated models too, with the operator's permission, so no model server is
# needed.
CATALOG = """\
[models.mistral-small-3-1.backend]
kind = "simulated"
[models.bge-reranker-v2.backend]
kind = "simulated"
[models.bge-m3.backend]
kind = "simulated"
"""


@pytest.fixture(scope="package")
def running_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """`xalen-batch up` with embedded stores on a folder of its own.

    It ends with the last end-to-end test: even an idle system takes 3 % of a core.
    """
    folder = tmp_path_factory.mktemp("system")
    catalog = folder / "catalog.toml"
    catalog.write_text(CATALOG, "utf-8")
    with processes.up(folder / "data", catalog=catalog, tick_interval=2) as system:
        allow = ("accounts", "simulation", "default", "--allow")
        env = processes.environment(data_dir=system.data_dir)
        processes.run(*allow, env=env).check_returncode()
        yield system


@pytest.fixture(scope="package")
def services() -> Iterator[stack.Stack]:
    """The services behind proxies. A test that causes a fault heals it again."""
    with stack.running() as running:
        yield running
