"""Streams end soon, so that tests which read each route to its end do."""

import pytest

from xalen_batch.api.http import event_stream


@pytest.fixture(autouse=True)
def _short_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "LONGEST", 0.05)
