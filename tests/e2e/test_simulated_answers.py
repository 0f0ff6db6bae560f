"""A pipeline of the official SDK on simulated models: tool calls, schemas and logprobs come back as
the SDK's own objects, and are billed by their usage.
"""

import json
from typing import Any, Literal

import openai
import pytest
from openai.types.chat import ChatCompletion
from pydantic import BaseModel, Field

from tests.e2e.processes import System
from tests.waiting import wait_until

URL: Literal["/v1/chat/completions"] = "/v1/chat/completions"


class Ticket(BaseModel):
    """What one ticket is about."""

    category: Literal["billing", "shipping", "other"]
    confidence: float = Field(ge=0, le=1)
    order: str | None = Field(pattern=r"^[A-Z]{2}-\d{4}$")
    parent: "Ticket | None"


TICKET = {
    "type": "json_schema",
    "json_schema": {"name": "ticket", "schema": Ticket.model_json_schema()},
}


class LookUpInvoice(BaseModel):
    """Look up an invoice."""

    number: int = Field(ge=1000, le=9999)
    reason: str


def line(custom_id: str, **body: Any) -> dict[str, Any]:
    message = {"role": "user", "content": "My card was charged twice on this invoice."}
    chat = {"model": "mistral-small-3-1", "messages": [message], **body}
    return {"custom_id": custom_id, "method": "POST", "url": URL, "body": chat}


@pytest.mark.parametrize("mode", ["test", "live"])
def test_answers_fit_what_was_asked_and_are_billed_by_their_usage(
    running_system: System, mode: str
) -> None:
    key = running_system.test_key if mode == "test" else running_system.live_key
    client = openai.OpenAI(base_url=running_system.base_url, api_key=key)
    lines = [
        line("schema", response_format=TICKET),
        line("tools", tools=[openai.pydantic_function_tool(LookUpInvoice)]),
        line("logprobs", logprobs=True, top_logprobs=3, max_tokens=10),
        line("invalid", tool_choice="required"),
    ]
    file = client.files.create(
        file=("lines.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch"
    )
    created = client.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")
    wait_until(lambda: client.batches.retrieve(created.id).status == "completed")
    batch = client.batches.retrieve(created.id)
    assert batch.output_file_id
    assert batch.error_file_id
    answers = {
        answer["custom_id"]: ChatCompletion.model_validate(answer["response"]["body"], strict=True)
        for answer in map(json.loads, client.files.content(batch.output_file_id).text.splitlines())
    }

    ticket = Ticket.model_validate_json(answers["schema"].choices[0].message.content or "")
    assert ticket.category == "billing"
    (call,) = answers["tools"].choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "LookUpInvoice"
    assert LookUpInvoice.model_validate_json(call.function.arguments)
    logprobs = answers["logprobs"].choices[0].logprobs
    assert logprobs
    assert len(logprobs.content or []) == 10
    (refused,) = map(json.loads, client.files.content(batch.error_file_id).text.splitlines())
    assert refused["response"]["body"]["error"]["param"] == "tool_choice"

    usages = [answer.usage for answer in answers.values() if answer.usage]
    written = sum(usage.completion_tokens for usage in usages)
    assert all(usage.completion_tokens > 5 for usage in usages)
    assert batch.usage
    assert batch.usage.output_tokens == written
    invoice = client.get(f"/batches/{batch.id}/invoice", cast_to=dict[str, Any])
    billed = [part for part in invoice["lines"] if part["component"] == "output"]
    assert [(part["quantity"], part["answered_by"]) for part in billed] == [
        (str(written), "simulated")
    ]
