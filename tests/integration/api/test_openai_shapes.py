"""Every answer for files and batches fits the `openai` client's models strictly: no key is missing,
none has another type.
"""

from typing import Any

import openai
import pytest
from openai.types import Batch, FileDeleted, FileObject, Model
from pydantic import BaseModel, TypeAdapter

from tests.integration.conftest import Api
from xalen_batch import db
from xalen_batch.models import Batch as BatchRow
from xalen_batch.pipeline import validate

# Our extensions, which the client does not know.
EXTENSIONS = {
    "schedule_id",
    "run_id",
    "execution_window",
    "on_invalid",
    "retry_of",
    "retry_codes",
    "waiting",
    "outlook",
}
# Fields that the client has, but OpenAI's own description of the answers lacks.
UNDESCRIBED = {"shutdown_date"}
LIST = {"object", "data", "first_id", "last_id", "has_more"}
REQUEST = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}


def fits(model: type[BaseModel], shown: dict[str, Any]) -> None:
    """Assert that the client's model parses it without changing a value, and that all fields of the
    model are present, null if they have no value.
    """
    # JSON has no literals of Python's; in everything else strict.
    read = TypeAdapter(model).validate_python(shown, strict=True)
    assert set(model.model_fields) - set(shown) <= UNDESCRIBED
    assert set(shown) - set(model.model_fields) <= EXTENSIONS
    assert read.to_dict(mode="json") == shown


def fits_list(model: type[BaseModel], shown: dict[str, Any]) -> None:
    assert set(shown) == LIST
    assert shown["object"] == "list"
    for item in shown["data"]:
        fits(model, item)
    assert (shown["first_id"], shown["last_id"]) == (
        (shown["data"][0]["id"], shown["data"][-1]["id"]) if shown["data"] else (None, None)
    )


def test_files_fit(api: Api) -> None:
    fits_list(FileObject, api.ask("GET", "/v1/files").json)
    file = api.upload(b"{}\n")
    fits(FileObject, file)
    fits(FileObject, api.ask("GET", f"/v1/files/{file['id']}").json)
    fits_list(FileObject, api.ask("GET", "/v1/files?limit=1").json)
    fits(FileDeleted, api.ask("DELETE", f"/v1/files/{file['id']}").json)


def test_batches_fit_in_each_state(api: Api) -> None:
    fits_list(Batch, api.ask("GET", "/v1/batches").json)
    made = api.ask(
        "POST",
        "/v1/batches",
        {"input_file_id": api.upload(b"nonsense\n{}\n")["id"], **REQUEST, "metadata": {"a": "b"}},
    ).json
    fits(Batch, made)
    with db.reading() as session:
        (batch_id,) = [row.id for row in session.query(BatchRow)]
    validate.run(batch_id)
    failed = api.ask("GET", f"/v1/batches/{made['id']}").json
    assert (failed["status"], [error["code"] for error in failed["errors"]["data"]]) == (
        "failed",
        ["invalid_json_line", "missing_required_parameter"],
    )
    fits(Batch, failed)
    other = api.ask("POST", "/v1/batches", {"input_file_id": api.upload()["id"], **REQUEST}).json
    fits(Batch, api.ask("POST", f"/v1/batches/{other['id']}/cancel").json)
    fits_list(Batch, api.ask("GET", "/v1/batches").json)


def test_models_fit(api: Api) -> None:
    fits_list(Model, api.ask("GET", "/v1/models").json)
    fits(Model, api.ask("GET", "/v1/models/bge-reranker-v2").json)


@pytest.mark.parametrize(
    ("method", "path", "body", "kind"),
    [
        ("GET", "/v1/files/x", None, openai.NotFoundError),
        ("GET", "/v1/batches?limit=0", None, openai.BadRequestError),
        ("POST", "/v1/batches", {}, openai.BadRequestError),
        ("PUT", "/v1/batches", {}, openai.APIStatusError),
    ],
)
def test_errors_are_those_that_the_client_raises_with_all_that_they_hold(
    api: Api, method: str, path: str, body: Any, kind: type[openai.APIStatusError]
) -> None:
    with pytest.raises(kind) as caught:
        api.client.request(
            cast_to=object,
            options=openai._models.FinalRequestOptions.construct(
                method=method, url=path.removeprefix("/v1"), json_data=body
            ),
        )
    error = caught.value
    assert error.request_id
    assert error.request_id.startswith("req_")
    assert isinstance(error.body, dict)
    assert set(error.body) == {"message", "type", "param", "code"}
    assert error.message
    assert (error.code, error.param, error.type) == (
        error.body["code"],
        error.body["param"],
        error.body["type"],
    )
