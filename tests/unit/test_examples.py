"""The examples are believable, valid, and made by the script beside them."""

import importlib.util
import json
from collections import Counter
from datetime import UTC, datetime
from types import ModuleType
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests import ROOT
from xalen_batch import catalog
from xalen_batch.schedules import templates
from xalen_batch.schedules.templates import Moment
from xalen_batch.validation.lines import GoodLine, scan

EXAMPLES = ROOT / "examples"
URLS = {
    "support-tickets.jsonl": "/v1/chat/completions",
    "help-centre-rerank.jsonl": "/v1/rerank",
    "mixed-models.jsonl": "/v1/chat/completions",
    "nightly-tickets.template.jsonl": "/v1/chat/completions",
}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EXAMPLES / name).read_text("utf-8").splitlines()]


def test_the_files_are_what_the_script_makes() -> None:
    for name, text in load("make_examples").rendered().items():
        assert (EXAMPLES / name).read_bytes() == text.encode(), (
            f"run examples/make_examples.py: {name} differs"
        )


@pytest.mark.parametrize("name", URLS)
def test_lines_are_requests_with_ids_of_their_own(name: str) -> None:
    requests = lines(name)
    assert all(set(request) == {"custom_id", "method", "url", "body"} for request in requests)
    assert {request["method"] for request in requests} == {"POST"}
    assert {request["url"] for request in requests} == {URLS[name]}
    assert len({request["custom_id"] for request in requests}) == len(requests)


def test_tickets_differ() -> None:
    texts = [
        request["body"]["messages"][-1]["content"] for request in lines("support-tickets.jsonl")
    ]
    assert len(set(texts)) == len(texts)
    assert not [text for text in texts if "{" in text or "}" in text]


def test_searches_hold_eight_to_twelve_passages_of_the_help_centre() -> None:
    corpus = {
        f"{article['title']}. {article['text']}"
        for article in json.loads((EXAMPLES / "help-centre.json").read_text("utf-8"))
    }
    for request in lines("help-centre-rerank.jsonl"):
        documents = request["body"]["documents"]
        assert 8 <= len(documents) <= 12
        assert len(set(documents)) == len(documents)
        assert set(documents) <= corpus


def test_the_mixed_file_names_both_models() -> None:
    models = Counter(request["body"]["model"] for request in lines("mixed-models.jsonl"))
    assert set(models) == {"mistral-small-3-1", "bge-reranker-v2"}


def test_the_template_becomes_a_good_file_of_its_night() -> None:
    raw = (EXAMPLES / "nightly-tickets.template.jsonl").read_bytes().splitlines(keepends=True)
    moment = Moment(datetime(2026, 11, 25, 1, 30, tzinfo=UTC), ZoneInfo("Europe/Berlin"), "run_1")
    night = list(templates.render(raw, moment))
    assert b"{{" not in b"".join(night)
    assert all(
        isinstance(line, GoodLine)
        for line in scan(night, endpoint="/v1/chat/completions", models=catalog.models())
    )
    first = json.loads(night[0])
    assert first["custom_id"] == "auto-reply-billing-2026-11-25"
    assert (
        "Tuesday, 24 November 2026; a person answers by Thursday"
        in first["body"]["messages"][1]["content"]
    )
    assert (
        first["body"]["user"],
        "since 26 October 2026" in first["body"]["messages"][0]["content"],
    ) == ("run_1", True)
