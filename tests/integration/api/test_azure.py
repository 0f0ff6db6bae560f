"""`AzureOpenAI` of the openai package: Azure's paths, its header, and its `api-version`."""

from typing import Any

import openai
import pytest

from tests import factories
from tests.factories import CHAT_MODEL, EMBEDDING_MODEL
from tests.integration.conftest import Api

LINES = factories.jsonl([factories.chat_line("a") | {"url": "/chat/completions"}])
HELLO: list[Any] = [{"role": "user", "content": "Where is my parcel?"}]
VERSION = "2025-03-01-preview"


def azure(api: Api, **options: Any) -> openai.AzureOpenAI:
    return openai.AzureOpenAI(
        azure_endpoint=f"http://127.0.0.1:{api.port}",
        api_key=options.pop("api_key", api.key),
        api_version=VERSION,
        max_retries=0,
        **options,
    )


def test_files_and_batches(api: Api) -> None:
    client = azure(api)
    file = client.files.create(file=("a.jsonl", LINES), purpose="batch")
    assert client.files.retrieve(file.id) == file
    assert [found.id for found in client.files.list()] == [file.id]
    assert client.files.content(file.id).read() == LINES
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/chat/completions",  # type: ignore[arg-type]
        completion_window="24h",
    )
    assert batch.endpoint == "/v1/chat/completions"
    assert [found.id for found in client.batches.list(limit=1)] == [batch.id]
    assert client.batches.cancel(batch.id).status == "cancelling"
    # The same objects as for the other client.
    assert api.client.batches.retrieve(batch.id).id == batch.id
    assert [model.id for model in client.models.list()]


def test_live_calls_of_a_model_and_of_a_deployment(api: Api) -> None:
    client = azure(api)
    chat = client.chat.completions.create(model=CHAT_MODEL, messages=HELLO)
    assert chat.choices[0].message.content
    assert client.responses.create(model=CHAT_MODEL, input="Hello").output_text
    assert len(client.embeddings.create(model=EMBEDDING_MODEL, input=["a", "b"]).data) == 2
    streamed = client.chat.completions.create(model=CHAT_MODEL, messages=HELLO, stream=True)
    assert "".join(each.choices[0].delta.content or "" for each in streamed if each.choices)
    deployed = azure(api, azure_deployment=CHAT_MODEL)
    chat = deployed.chat.completions.create(model=CHAT_MODEL, messages=HELLO)
    assert chat.model == CHAT_MODEL
    # Files have no deployment in their path.
    assert list(deployed.files.list()) == []


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"/openai/deployments/{CHAT_MODEL}/chat/completions", 200),
        ("/openai/deployments/gpt-none/chat/completions", 404),
        ("/openai/v1/chat/completions", 400),
    ],
)
def test_a_body_without_a_model_has_that_of_the_path(api: Api, path: str, status: int) -> None:
    headers = {"api-key": api.key}
    answer = api.ask(
        "POST", f"{path}?api-version=1", {"messages": HELLO}, key=None, headers=headers
    )
    assert answer.status == status
    if status == 200:
        assert answer.json["model"] == CHAT_MODEL
    else:
        assert answer.error["param"] == "model"


def test_the_new_paths_take_any_client(api: Api) -> None:
    url = f"http://127.0.0.1:{api.port}/openai/v1/"
    client = openai.OpenAI(base_url=url, api_key=api.key, max_retries=0)
    assert list(client.batches.list()) == []


@pytest.mark.parametrize("path", ["/openai/files", "/openai/v1/chat/completions"])
def test_a_wrong_key_is_refused(api: Api, path: str) -> None:
    method = "GET" if path.endswith("files") else "POST"
    for headers in ({}, {"api-key": "xln_test_wrong"}):
        answer = api.ask(method, path, None, key=None, headers=headers)
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
