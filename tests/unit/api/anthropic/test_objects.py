"""Message batches: their status and their counts in each status of a batch."""

from datetime import UTC, datetime
from typing import Any

import pytest

from xalen_batch import ids
from xalen_batch.api.anthropic.objects import MessageBatch
from xalen_batch.models import Batch

NOW = datetime(2026, 11, 29, 16, 0, tzinfo=UTC)
NONE = {"succeeded": 0, "errored": 0, "canceled": 0, "expired": 0, "processing": 0}


def shown(status: str, archived_at: datetime | None = None, **columns: Any) -> MessageBatch:
    counts = {"total": 0, "completed": 0, "failed": 0}
    batch = Batch(id=ids.new(), status=status, created_at=NOW, expires_at=NOW, **(counts | columns))
    return MessageBatch.of(batch, "http://host", archived_at)


@pytest.mark.parametrize(
    ("status", "columns", "processing_status", "counts"),
    [
        ("validating", {"requests": 9}, "in_progress", {"processing": 9}),
        ("validating", {}, "in_progress", {}),
        ("in_progress", {"total": 9, "failed": 2}, "in_progress", {"processing": 9}),
        ("finalizing", {"total": 9, "requests": 9}, "in_progress", {"processing": 9}),
        ("cancelling", {"requests": 9}, "canceling", {"processing": 9}),
        ("failed", {"requests": 9}, "ended", {"errored": 9}),
        ("failed", {}, "ended", {}),
        ("cancelled", {"requests": 9}, "ended", {"canceled": 9}),
        (
            "cancelled",
            {"total": 9, "completed": 3, "failed": 2, "cancelled": 4, "expired": 0},
            "ended",
            {"succeeded": 3, "errored": 2, "canceled": 4},
        ),
        (
            "expired",
            {"total": 9, "completed": 3, "failed": 2, "cancelled": 0, "expired": 4},
            "ended",
            {"succeeded": 3, "errored": 2, "expired": 4},
        ),
        (
            "completed",
            {"total": 9, "completed": 8, "failed": 1, "cancelled": 0, "expired": 0},
            "ended",
            {"succeeded": 8, "errored": 1},
        ),
        # A batch from before there were these columns.
        (
            "expired",
            {"total": 9, "completed": 8, "failed": 1},
            "ended",
            {"succeeded": 8, "errored": 1},
        ),
    ],
)
def test_the_counts_add_up(
    status: str, columns: Any, processing_status: str, counts: dict[str, int]
) -> None:
    found = shown(status, **columns)
    assert found.processing_status == processing_status
    assert found.request_counts.model_dump() == NONE | counts
    has_results = found.results_url == f"http://host/v1/messages/batches/{found.id}/results"
    assert has_results == (processing_status == "ended")


def test_times_are_utc_in_the_form_of_the_wire() -> None:
    found = shown("cancelled", cancelling_at=NOW, cancelled_at=NOW, archived_at=NOW)
    said = found.model_dump(mode="json")
    names = ("created_at", "expires_at", "ended_at", "cancel_initiated_at", "archived_at")
    assert {said[name] for name in names} == {"2026-11-29T16:00:00Z"}
    assert found.results_url is None
