"""The body of a delivery is OpenAI's event, byte for byte."""

from datetime import UTC, datetime
from uuid import UUID

import pytest

from xalen_batch.models.deliveries import Due
from xalen_batch.models.events import EventType
from xalen_batch.webhooks import payload

ID, OBJECT = UUID(int=1), UUID(int=2)
NOW = datetime(2026, 11, 29, 12, 0, 0, 999_999, tzinfo=UTC)


def test_the_body_has_exactly_openais_keys_in_compact_json() -> None:
    assert payload.body(Due(ID, "batch.completed", OBJECT, NOW, 3)) == (
        b'{"id":"evt_00000000000000000000000000000001","object":"event","created_at":1795953600,'
        b'"type":"batch.completed","data":{"id":"batch_00000000000000000000000000000002"}}'
    )


@pytest.mark.parametrize(
    ("type", "prefix"),
    [
        (EventType.BATCH_AT_RISK, "batch_"),
        (EventType.RESPONSE_INCOMPLETE, "resp_"),
        (EventType.RUN_MISSED, "run_"),
        (EventType.INVOICE_ISSUED, "inv_"),
        (EventType.WEBHOOK_DISABLED, "whe_"),
    ],
)
def test_the_data_names_the_object_that_the_type_is_about(type: EventType, prefix: str) -> None:
    found = payload.fields(Due(ID, type, OBJECT, NOW, 0))
    assert found["data"] == {"id": f"{prefix}{OBJECT.hex}"}
