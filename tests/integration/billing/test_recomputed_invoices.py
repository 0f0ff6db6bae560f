"""A customer recomputes an invoice from the output file and the price list.

That works whatever usage the backend reported.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests import factories
from tests.billing import REFUSED, Ran, ended
from tests.factories import CHAT_MODEL, RERANK_MODEL
from tests.integration.conftest import Api
from xalen_batch import db, ids
from xalen_batch.accounts import accounts
from xalen_batch.backends.clients.contract import Reply
from xalen_batch.backends.contract import Answered, Request
from xalen_batch.backends.outcomes import outcome_of
from xalen_batch.billing import invoices
from xalen_batch.endpoints.names import CHAT, RERANK
from xalen_batch.models import Batch
from xalen_batch.models.files import FilePart
from xalen_batch.results import results

pytestmark = pytest.mark.usefixtures("database", "valkey")

# The price list in docs/billing.md: USD per million tokens, and the batch discount.
PRICES = {
    (CHAT_MODEL, "input"): "0.02",
    (CHAT_MODEL, "cached_input"): "0.002",
    (CHAT_MODEL, "output"): "0.04",
    (RERANK_MODEL, "input"): "0.003",
}
DISCOUNT = Decimal("0.5")
SNAPSHOT = {
    model: {component: price for (named, component), price in PRICES.items() if named == model}
    for model in (CHAT_MODEL, RERANK_MODEL)
}

ASKED = {
    CHAT_MODEL: Request(CHAT, orjson.dumps(factories.chat_line("a")["body"]), "r"),
    RERANK_MODEL: Request(RERANK, orjson.dumps(factories.rerank_line("a")["body"]), "r"),
}
PARTS = {
    CHAT_MODEL: {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "It is on its way."}}]
    },
    RERANK_MODEL: {"results": [{"index": 0, "relevance_score": 0.5}]},
}
NUMBERS = st.one_of(
    st.integers(-2, 400), st.sampled_from([None, True, 1.5, "12", 9_000, 10**9, 10**30])
)
USAGES = st.one_of(
    st.just(None),
    NUMBERS,
    st.dictionaries(
        st.sampled_from(
            ["prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens"]
        ),
        NUMBERS,
    ),
    st.builds(
        lambda read, cached: {
            "prompt_tokens": read,
            "completion_tokens": 5,
            "prompt_tokens_details": cached,
        },
        st.integers(0, 400),
        st.one_of(NUMBERS, st.builds(lambda cached: {"cached_tokens": cached}, NUMBERS)),
    ),
)
MODELS = st.sampled_from([CHAT_MODEL, RERANK_MODEL])


def answered(model: str, usage: Any) -> Ran:
    """A line whose backend reported this usage."""
    outcome = outcome_of(
        Reply(200, json.dumps({**PARTS[model], "usage": usage}).encode(), {}.get), ASKED[model]
    )
    assert isinstance(outcome, Answered)
    return Ran(outcome, model)


def used(
    lines: Iterable[bytes],
    models: Sequence[str],
    *,
    only_counted: bool = False,
    is_cached_apart: bool = False,
) -> Counter[tuple[str, str]]:
    """Tokens by model and component, from the lines of an output file.

    `models`: those of the input's lines. `is_cached_apart`: cached input of the chat model is a
    component of its own.
    """
    found: Counter[tuple[str, str]] = Counter()
    for line in map(orjson.loads, lines):
        model, body = (
            models[int(line["custom_id"].removeprefix("line-")) - 1],
            line["response"]["body"],
        )
        if not only_counted or body.get("xalen", {}).get("usage_source") == "counted":
            details = body["usage"].get("prompt_tokens_details") or {}
            cached = (details.get("cached_tokens") or 0) if is_cached_apart else 0
            found[model, "input"] += body["usage"]["prompt_tokens"] - cached
            found[model, "cached_input"] += cached
            found[model, "output"] += body["usage"].get("completion_tokens", 0)
    return found


def cost(tokens: Counter[tuple[str, str]]) -> Decimal:
    gross = sum(
        (Decimal(PRICES.get(which, "0")) * count for which, count in tokens.items()), Decimal(0)
    )
    return gross / 1_000_000 * (1 - DISCOUNT)


def quantities(invoice: dict[str, Any], *reasons: str | None) -> Counter[tuple[str, str]]:
    return Counter(
        {
            (model, component): sum(
                int(line["quantity"])
                for line in invoice["lines"]
                if (line["model"], line["component"]) == (model, component)
                and (not reasons or line["reason"] in reasons)
            )
            for model, component in {
                (line["model"], line["component"]) for line in invoice["lines"] if line["component"]
            }
        }
    )


def invoice_of(batch: Batch) -> dict[str, Any]:
    with db.transaction() as session:
        return invoices.render(invoices.of_batch(session, batch))


@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.one_of(st.builds(answered, MODELS, USAGES), st.builds(Ran, st.just(REFUSED), MODELS)),
        max_size=10,
    ),
    st.booleans(),
)
def test_the_output_file_and_the_price_list_make_the_invoice(
    ran: list[Ran], is_cached_priced: bool
) -> None:
    columns = {"price_snapshot": SNAPSHOT} if is_cached_priced else {}
    batch, models = ended(ran, **columns), [line.model for line in ran]
    lines = b"".join(results.chunks(batch.id, FilePart.OUTPUT)).splitlines()
    tokens = used(lines, models, is_cached_apart=is_cached_priced)
    counted = used(lines, models, only_counted=True)
    invoice = invoice_of(batch)
    assert cost(tokens) == Decimal(invoice["total"])
    assert +quantities(invoice) == +tokens
    assert +quantities(invoice, "usage_counted") == +Counter(
        {which: count for which, count in counted.items() if which in PRICES}
    )
    for component, noted in (
        ("input", batch.counted_input_tokens),
        ("output", batch.counted_output_tokens),
    ):
        assert noted == sum(
            count for which, count in counted.items() if which in PRICES and which[1] == component
        )


@pytest.mark.parametrize("model", [CHAT_MODEL, RERANK_MODEL])
def test_counted_tokens_are_shown_wherever_the_amount_is(api: Api, model: str) -> None:
    with db.transaction() as session:
        caller = accounts.authenticate(session, api.key)
    sound = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
    batch = ended(
        [answered(model, sound), answered(model, None), answered(model, {"prompt_tokens": -3})],
        caller,
    )
    public_id = ids.render("batch", batch.id)
    shown = api.ask("GET", f"/v1/batches/{public_id}").json
    content = api.ask("GET", f"/v1/files/{shown['output_file_id']}/content")
    assert int(content.headers["content-length"]) == len(content.body)
    assert api.ask("GET", f"/v1/batches/{public_id}/output").body == content.body

    tokens = used(content.body.splitlines(), [model] * 3)
    counted = used(content.body.splitlines(), [model] * 3, only_counted=True)
    assert counted[model, "input"] == tokens[model, "input"] - 10
    assert shown["usage"]["input_tokens"] == tokens[model, "input"]
    assert shown["usage"]["input_tokens_details"]["counted_tokens"] == counted[model, "input"]
    assert shown["usage"]["output_tokens_details"]["counted_tokens"] == counted[model, "output"]

    invoice = api.ask("GET", f"/v1/batches/{public_id}/invoice").json
    assert Decimal(invoice["total"]) == cost(tokens)
    (line,) = [
        line
        for line in invoice["lines"]
        if line["reason"] == "usage_counted" and line["component"] == "input"
    ]
    assert (line["kind"], line["quantity"]) == ("usage", str(counted[model, "input"]))
    assert line["description"] == f"{model}, input tokens counted by xalen-batch"

    statement = api.ask("GET", f"/v1/statements/{datetime.now(UTC):%Y-%m}").json
    assert [(line["kind"], line["reason"]) for line in statement["lines"]] == [
        ("batch", "usage_counted"),
        ("rounding", None),
    ]


def test_a_batch_without_counted_tokens_says_so(api: Api) -> None:
    with db.transaction() as session:
        caller = accounts.authenticate(session, api.key)
    batch = ended([answered(CHAT_MODEL, {"prompt_tokens": 10, "completion_tokens": 2})], caller)
    usage = api.ask("GET", f"/v1/batches/{ids.render('batch', batch.id)}").json["usage"]
    assert usage["input_tokens_details"] == {"cached_tokens": 0, "counted_tokens": 0}
    statement = api.ask("GET", f"/v1/statements/{datetime.now(UTC):%Y-%m}").json
    assert {line["reason"] for line in statement["lines"]} == {None}
