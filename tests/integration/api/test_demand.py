"""/v1/demand and /metrics: what an operator's tools read, with a token of their own."""

from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

from tests import factories, ran
from tests.integration.conftest import Api
from tests.waiting import wait_until

TOKEN = "metrics-token-of-the-tests"
PATHS = ("/v1/demand", "/metrics")


def test_without_the_setting_there_is_nothing(api: Api) -> None:
    for path in PATHS:
        assert api.ask("GET", path).status == 404


def test_only_the_token_is_admitted(api: Api, configure: Callable[..., None]) -> None:
    configure(metrics_token=TOKEN)
    for path in PATHS:
        for key in (None, api.key, TOKEN[:-1], TOKEN + "x", "é"):
            answer = api.ask("GET", path, key=key)
            assert answer.status == 401, (path, key)
            assert answer.error["code"] == "invalid_api_key"
        assert api.ask("GET", path, key=TOKEN).status == 200
    # It is no API key.
    assert api.ask("GET", "/v1/batches", key=TOKEN).status == 401


def test_demand_tells_the_lines_of_all_accounts(api: Api, configure: Callable[..., None]) -> None:
    configure(metrics_token=TOKEN)
    first = ran.submitted([factories.chat_line("a"), factories.chat_line("b")])
    ran.submitted([factories.chat_line("a")])
    answer = api.ask("GET", "/v1/demand", key=TOKEN).json
    assert answer == {
        "object": "list",
        "data": [
            {
                "model": "mistral-small-3-1",
                "livemode": False,
                "due": "24h",
                "is_open": True,
                "batches": 2,
                "lines": 3,
                "input_tokens": answer["data"][0]["input_tokens"],
                "oldest": first.created_at.isoformat().replace("+00:00", "Z"),
            }
        ],
    }
    assert answer["data"][0]["input_tokens"] > 0


def test_metrics_are_text_that_prometheus_reads(api: Api, configure: Callable[..., None]) -> None:
    configure(metrics_token=TOKEN)
    labels = {"method": "GET", "route": "/v1/models/{model_id:path}", "status": "404"}

    def seen() -> float:
        answer = api.ask("GET", "/metrics", key=TOKEN)
        assert answer.headers["content-type"].startswith("text/plain; version=")
        return sum(
            sample.value
            for family in text_string_to_metric_families(answer.body.decode())
            for sample in family.samples
            if sample.name == "xalen_http_requests_total" and sample.labels == labels
        )

    before = seen()
    assert api.ask("GET", "/v1/models/none-such").status == 404
    # Counted behind the answer.
    wait_until(lambda: seen() > before)
    assert seen() == before + 1
