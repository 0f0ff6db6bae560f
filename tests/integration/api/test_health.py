"""Health, and the pages that describe the API."""

import json
import re
import threading
from pathlib import Path

import pytest
import redis

from tests.integration.conftest import Api
from xalen_batch import catalog
from xalen_batch.api import health
from xalen_batch.endpoints.names import ENDPOINTS

PATHS = {
    "/v1/api_keys",
    "/v1/api_keys/{key_id}",
    "/v1/api_keys/{key_id}/rotate",
    "/v1/files",
    "/v1/files/{file_id}",
    "/v1/files/{file_id}/content",
    "/v1/uploads",
    "/v1/uploads/{upload_id}",
    "/v1/uploads/{upload_id}/parts",
    "/v1/uploads/{upload_id}/complete",
    "/v1/uploads/{upload_id}/cancel",
    "/v1/batches",
    "/v1/batches/{batch_id}",
    "/v1/batches/{batch_id}/cancel",
    *ENDPOINTS,
    "/v1/messages/batches",
    "/v1/messages/batches/{message_batch_id}",
    "/v1/messages/batches/{message_batch_id}/cancel",
    "/v1/messages/batches/{message_batch_id}/results",
    "/v1/responses/{response_id}",
    "/v1/responses/{response_id}/cancel",
    "/v1/models",
    "/v1/models/{model_id}",
    "/v1/batches/estimate",
    "/v1/batches/{batch_id}/invoice",
    "/v1/batches/{batch_id}/output",
    "/v1/batches/{batch_id}/errors",
    "/v1/batches/{batch_id}/retry",
    "/v1/batches/{batch_id}/retries",
    "/v1/batches/{batch_id}/events",
    "/v1/batches/{batch_id}/lines/{custom_id}",
    "/v1/statements/{month}",
    "/v1/limits",
    "/v1/demand",
    "/v1/credit_notes",
    "/v1/credit_notes/{credit_note_id}",
    "/v1/batches/{batch_id}/invoice/lines.csv",
    "/v1/batches/{batch_id}/invoice/pdf",
    "/v1/statements/{month}/pdf",
    "/v1/invoices.csv",
    "/v1/events",
    "/v1/webhook_endpoints",
    "/v1/webhook_endpoints/{webhook_id}",
    "/v1/webhook_endpoints/{webhook_id}/rotate_secret",
    "/v1/webhook_endpoints/{webhook_id}/test",
    "/v1/webhook_event_types",
    "/v1/webhooks",
    "/v1/webhooks/{webhook_id}",
    "/v1/webhooks/{webhook_id}/deliveries",
    "/v1/webhooks/{webhook_id}/deliveries/{event_id}/redeliver",
    "/v1/webhooks/{webhook_id}/replay",
    "/v1/webhooks/{webhook_id}/rotate",
    "/v1/webhooks/{webhook_id}/test",
    "/v1/terms",
    "/v1/schedules",
    "/v1/schedules/preview",
    "/v1/schedules/{schedule_id}",
    "/v1/schedules/{schedule_id}/runs",
    "/v1/schedules/{schedule_id}/preview",
    "/v1/schedules/{schedule_id}/pause",
    "/v1/schedules/{schedule_id}/resume",
    "/v1/schedules/{schedule_id}/run",
    "/v1/schedules/{schedule_id}/backfill",
    "/v1/schedules/{schedule_id}/requests",
    "/livez",
    "/readyz",
}


def test_ready_when_every_store_answers(api: Api) -> None:
    assert api.ask("GET", "/livez", key=None).json == {"status": "ok"}
    answer = api.ask("GET", "/readyz", key=None)
    assert (answer.status, answer.json["status"]) == (200, "ok")
    assert {
        name: check["status"] for name, check in answer.json["checks"].items()
    } == dict.fromkeys(
        ["database", "migrations", "redis", "storage", "disk", "workers", "catalog"], "ok"
    )


def test_with_a_redis_that_cannot_be_written_to_it_is_degraded_and_ready(
    api: Api, valkey: redis.Redis
) -> None:
    valkey.replicaof("127.0.0.1", "1")
    try:
        answer = api.ask("GET", "/readyz", key=None)
    finally:
        valkey.replicaof("NO", "ONE")
    assert (answer.status, answer.json["status"]) == (200, "degraded")
    assert answer.json["checks"]["redis"] == {"status": "failed", "error": "ReadOnlyError"}
    assert api.ask("GET", "/readyz", key=None).json["status"] == "ok"


def test_with_a_broken_catalog_file_it_is_degraded_and_ready(
    api: Api, configure: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "LOOK_EVERY", 0.0)
    file = tmp_path / "catalog.toml"
    file.write_text("")
    configure(catalog=file)  # type: ignore[operator]
    assert api.ask("GET", "/readyz", key=None).json["status"] == "ok"
    file.write_text('[models."a secret"')
    for _ in range(2):
        catalog.models()
    answer = api.ask("GET", "/readyz", key=None)
    assert (answer.status, answer.json["status"]) == (200, "degraded")
    found = answer.json["checks"]["catalog"]
    assert found["status"] == "failed"
    assert "the catalog before it is in force" in found["error"]
    assert "secret" not in found["error"]
    # The API goes on with the catalog before it.
    assert api.ask("GET", "/v1/models").json["data"]


def test_without_redis_it_is_degraded_and_ready(api: Api, configure: object) -> None:
    configure(redis_url="redis://127.0.0.1:1/0")  # type: ignore[operator]
    answer = api.ask("GET", "/readyz", key=None)
    assert (answer.status, answer.json["status"]) == (200, "degraded")
    assert answer.json["checks"]["redis"]["status"] == "failed"
    assert api.upload()["object"] == "file"


def test_a_check_that_hangs_does_not_hang_the_answer(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setitem(health.CHECKS, "storage", released.wait)
    answer = api.ask("GET", "/readyz", key=None)
    released.set()
    assert (answer.status, answer.json["checks"]["storage"]["error"]) == (
        503,
        "no answer within 1 s",
    )


def test_a_schema_that_is_behind_is_not_ready(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xalen_batch.migrate.is_usable", lambda: False)
    answer = api.ask("GET", "/readyz", key=None)
    assert answer.status == 503
    assert "xalen-batch migrate" in answer.json["checks"]["migrations"]["error"]


def test_a_schema_of_a_newer_version_is_ready(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xalen_batch.migrate.found", lambda: "9999")
    answer = api.ask("GET", "/readyz", key=None)
    assert answer.json["checks"]["migrations"]["status"] == "ok"


def test_the_docs_page_needs_nobody_else(api: Api) -> None:
    page = api.ask("GET", "/docs", key=None).body.decode()
    assert "http://" not in page
    assert "https://" not in page
    assert '"validatorUrl": null' in page
    for asset in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert api.ask("GET", asset, key=None).status == 200, asset
    assert re.findall(r"url: '([^']+)'", page) == ["/openapi.json"]


def test_the_description_has_every_route_and_one_shape_of_errors(api: Api) -> None:
    described = api.ask("GET", "/openapi.json", key=None).json
    assert set(described["paths"]) == PATHS
    assert "HTTPValidationError" not in json.dumps(described)
    upload = described["paths"]["/v1/files"]["post"]["requestBody"]["content"][
        "multipart/form-data"
    ]["schema"]
    assert upload["required"] == ["file", "purpose"]
    assert described["paths"]["/v1/batches"]["post"]["responses"]["200"]["content"][
        "application/json"
    ]["schema"] == {"$ref": "#/components/schemas/BatchObject"}
