"""`explain`: the path that it asks for, and what it prints."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.unit.cli.fake_api import serving
from xalen_batch.cli.main import app

CHARGE = {
    "currency": "USD",
    "components": [
        {"component": "input", "tokens": 1_000, "unit_price": "0.02", "amount": "0.00002"},
        {"component": "output", "tokens": 500, "unit_price": None, "amount": None},
    ],
    "subtotal": "0.00002",
    "discount_rate": "0.5",
    "amount": "0.00001",
}
LINE = {
    "object": "batch.line",
    "batch_id": "batch_1",
    "custom_id": "a/b %",
    "line": 7,
    "status": "succeeded",
    "model": "m",
    "answered_by": "openai",
    "request": {"custom_id": "a/b %", "body": {"text": "x" * 3_000}},
    "result": None,
    "reason": None,
    "failed_attempts": 0,
    "attempts": [],
    "usage": {"input_tokens": 1_000, "output_tokens": 500, "source": "reported"},
    "charge": CHARGE,
}


def run(line: dict[str, Any], *options: str) -> tuple[str, str]:
    """The path that was asked for, and what was printed."""
    with serving() as api:
        api.answers = [(200, {}, json.dumps(line).encode())]
        connection = ("--base-url", api.base_url, "--api-key", "k")
        result = CliRunner().invoke(app, ["explain", "batch_1", "a/b %", *options, *connection])
        assert result.exit_code == 0, result.stderr
        return api.requests[0][1], result.stdout


def test_the_custom_id_is_encoded_in_the_path() -> None:
    path, printed = run(LINE, "--json")
    assert path == "/v1/batches/batch_1/lines/a%2Fb%20%25"
    assert json.loads(printed) == LINE


def test_the_price_is_shown_as_a_sum() -> None:
    _, printed = run(LINE)
    assert (
        "1,000 input × 0.02 + 500 output × no price per million = 0.00002; less 50 % = 0.00001 USD"
    ) in printed
    assert "… (--json prints all of it)" in printed
    assert "input_tokens=1,000" in printed


@pytest.mark.parametrize(
    ("charge", "shown"),
    [
        ({**CHARGE, "components": None}, "0.00001 USD"),
        ({**CHARGE, "components": []}, "0 tokens per"),
    ],
)
def test_a_charge_without_components(charge: dict[str, Any], shown: str) -> None:
    assert shown in run(LINE | {"charge": charge, "attempts": "It failed 3 times."})[1]


def test_failed_attempts_and_the_reason_of_a_line_that_waits() -> None:
    attempt = {"at": 1_795_888_000, "seconds": 0.12, "error": "server_error", "status_code": 500}
    lost = {"at": 1_795_888_060, "seconds": None, "error": "worker_lost", "status_code": None}
    attempts = [attempt | {"server": 2}, lost | {"server": None}]
    _, printed = run(
        LINE
        | {"status": "waiting", "reason": "No worker runs.", "failed_attempts": 1_002}
        | {"attempts": attempts, "usage": None, "charge": None}
    )
    assert "reason           No worker runs." in printed
    assert "failed attempts  1,002; the last 2:" in printed
    assert "server error (500) at server 2 after 0.12 s" in printed
    assert " UTC worker lost\n" in printed
