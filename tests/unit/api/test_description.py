"""The description of the API: short names, every error, every content."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.described import description

DESCRIPTION = description()
OPERATIONS = {
    operation["operationId"]: operation
    for methods in DESCRIPTION["paths"].values()
    for operation in methods.values()
}
OPENAI = {
    "createFile",
    "listFiles",
    "retrieveFile",
    "downloadFile",
    "deleteFile",
    "createBatch",
    "listBatches",
    "retrieveBatch",
    "cancelBatch",
    "listModels",
    "retrieveModel",
}
# Their clients are those of Anthropic's API.
ANTHROPICS = {
    operation["operationId"]
    for path, methods in DESCRIPTION["paths"].items()
    if path.startswith("/v1/messages")
    for operation in methods.values()
}
UNREADY = {"livez", "readyz"}
DOWNLOADS = {"downloadFile", "getBatchOutput", "getBatchErrors"}
PDF = {"downloadInvoicePdf", "downloadStatementPdf"}
CSV = {"downloadInvoiceLines", "downloadInvoices"}
STREAM = "streamBatchEvents"


def test_operations_have_openais_names_and_no_two_the_same() -> None:
    assert set(OPERATIONS) >= OPENAI
    assert len(OPERATIONS) == sum(map(len, DESCRIPTION["paths"].values()))
    assert all(name.isalpha() and name[0].islower() and len(name) < 30 for name in OPERATIONS)


def test_it_names_the_server_and_who_needs_a_key() -> None:
    assert DESCRIPTION["servers"] == [{"url": "/", "description": "This server"}]
    assert {name for name, operation in OPERATIONS.items() if not operation["security"]} == UNREADY


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - UNREADY))
def test_every_operation_has_its_errors_in_the_envelope(name: str) -> None:
    answers = OPERATIONS[name]["responses"]
    others = {"200", "206", "304"} if name in DOWNLOADS else {"200"}
    others |= {"204"} if name == STREAM else set()
    errors = {status: answer for status, answer in answers.items() if status not in others}
    assert set(errors) == {"400", "401", "403", "404", "429", "4XX", "500", "503", "5XX"}
    shape = "MessageError" if name in ANTHROPICS else "ErrorObject"
    for answer in errors.values():
        assert answer["content"] == {
            "application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}
        }
        assert answer["description"]


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_no_answer_is_without_a_shape(name: str) -> None:
    ((kind, media),) = OPERATIONS[name]["responses"]["200"]["content"].items()
    if name in DOWNLOADS:
        assert (kind, media["schema"]) == (
            "application/octet-stream",
            {"type": "string", "format": "binary"},
        )
        whole, part = (
            OPERATIONS[name]["responses"][status]["content"] for status in ("200", "206")
        )
        assert whole == part
        assert "content" not in OPERATIONS[name]["responses"]["304"]
        return
    if name == "getMessageBatchResults":
        assert (kind, media["schema"]) == ("application/x-jsonl", {"type": "string"})
        return
    if name in PDF:
        assert (kind, media["schema"]) == (
            "application/pdf",
            {"type": "string", "format": "binary"},
        )
        return
    if name in CSV:
        assert (kind, media["schema"]) == ("text/csv", {"type": "string"})
        return
    if name == STREAM:
        assert (kind, media["schema"]) == ("text/event-stream", {"type": "string"})
        return
    assert kind == "application/json"
    for schema in _schemas(media["schema"]):
        if name == "explainLine" and schema.get("additionalProperties") is True:
            # The request, which is the client's, and its result.
            continue
        assert schema.get("properties") or schema["additionalProperties"]["type"] == "string", (
            schema
        )


def _schemas(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The objects of an answer, those inside others too."""
    if "$ref" in schema:
        yield from _schemas(DESCRIPTION["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
        return
    others = schema.get("additionalProperties")
    others = others if isinstance(others, dict) else {}
    if schema.get("type") == "object" and "$ref" not in others:
        yield schema
    inner = [
        *schema.get("properties", {}).values(),
        *schema.get("anyOf", []),
        schema.get("items"),
        schema.get("additionalProperties"),
    ]
    for part in inner:
        if isinstance(part, dict):
            yield from _schemas(part)
