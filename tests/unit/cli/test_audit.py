"""The output of `audit`, by the columns of the audit log."""

from xalen_batch import ids
from xalen_batch.cli.audit import _public


def test_ids_are_those_that_users_have() -> None:
    id = ids.new()
    kept = {
        "batch_id": str(id),
        "input_file_id": str(id),
        "name": str(id),
        "schedule_id": None,
        "total": "0.5",
    }
    assert _public(kept) == {
        **kept,
        "batch_id": ids.render("batch", id),
        "input_file_id": ids.render("file", id),
    }
    assert _public(None) is None


def test_what_is_no_uuid_stays() -> None:
    assert _public({"key_id": "none", "batch_id": 7}) == {"key_id": "none", "batch_id": 7}
