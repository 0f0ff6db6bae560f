"""One campaign for all seeds of a test process. Its system is stopped before other tests run."""

from collections.abc import Iterator

import pytest

from tests.chaos.campaign import Campaign


@pytest.fixture(scope="package")
def campaign() -> Iterator[Campaign]:
    with Campaign() as campaign:
        yield campaign
