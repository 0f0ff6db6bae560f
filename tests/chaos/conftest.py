"""One campaign for all seeds of a test process: its system is used again while it is well."""

from collections.abc import Iterator

import pytest

from tests.chaos.campaign import Campaign


@pytest.fixture(scope="session")
def campaign() -> Iterator[Campaign]:
    with Campaign() as campaign:
        yield campaign
