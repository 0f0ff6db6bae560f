"""Output contains no terminal control sequences, and money exactly as the API sent it."""

import io
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.text import Text

from xalen_batch.cli import batch_view, output
from xalen_batch.cli.invoices import print_invoice

HOSTILE = "\x1b[2J\x1b]0;owned\x07[bold red]x[/] \u202etxt.exe \x9b31m\nnext \ud800"


@given(st.text())
def test_safe_text_is_one_line_without_controls(text: str) -> None:
    shown = output.safe(text)
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in shown)
    assert shown.splitlines() in ([], [shown])
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    shown.encode()


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_ordinary_text_is_shown_as_it_is(text: str) -> None:
    assert output.safe(text) == text


def _printed(batch: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    batch_view.details(batch)
    return capsys.readouterr().out


def test_metadata_and_filenames_are_neutralised(capsys: pytest.CaptureFixture[str]) -> None:
    printed = _printed(
        {"id": "batch_1", "metadata": {HOSTILE: HOSTILE}, "status": "completed"}, capsys
    )
    assert "\x1b" not in printed
    assert "\u202e" not in printed
    assert "[bold red]x[/]" in printed


def test_errors_are_shown_with_their_line(capsys: pytest.CaptureFixture[str]) -> None:
    batch_view.print_line_errors(
        [{"line": 7, "code": "invalid_json_line", "message": f"bad {HOSTILE}"}], "in.jsonl"
    )
    printed = capsys.readouterr().err
    assert printed.startswith("in.jsonl:7: invalid_json_line: bad \\x1b[2J")
    assert "\x1b" not in printed


def _invoice(**fields: Any) -> dict[str, Any]:
    line = {
        "kind": "usage",
        "description": "",
        "model": "m",
        "component": "input",
        "quantity": "61203477",
        "unit_price": "0.02",
    }
    return {
        "id": "inv_1",
        "batch_id": "batch_1",
        "livemode": True,
        "currency": "USD",
        "total": "0.61203477",
        "lines": [
            line | {"reason": None, "amount": "1.22406954"},
            {
                **dict.fromkeys(line),
                "kind": "discount",
                "description": "Batch discount, 50 %",
                "reason": None,
                "amount": "-0.61203477",
            },
        ],
        **fields,
    }


def test_an_invoice_shows_the_amounts_of_the_api_and_grouped_tokens(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_invoice(_invoice())
    printed = capsys.readouterr().out
    for text in (
        "1.22406954",
        "-0.61203477",
        "61,203,477",
        "0.02 per 1M",
        "Batch discount, 50 %",
        "USD",
    ):
        assert text in printed
    assert "not payable" not in printed
    assert "counted" not in printed


def test_counted_tokens_are_marked_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    found = _invoice()
    found["lines"].insert(
        1, found["lines"][0] | {"quantity": "8", "reason": "usage_counted", "amount": "0.00000016"}
    )
    print_invoice(found)
    printed = capsys.readouterr().out
    assert "input, counted" in printed
    assert "the model backend reported no usable usage" in printed
    usage = {
        "input_tokens": 30,
        "input_tokens_details": {"cached_tokens": 0, "counted_tokens": 8},
        "output_tokens_details": None,
    }
    assert "counted_input_tokens=8" in _printed({"id": "batch_1", "usage": usage}, capsys)


def test_cached_tokens_without_a_price_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    found, words = _invoice(), "m, input tokens, of which 9 cached, at the input price"
    found["lines"][0]["description"] = words
    print_invoice(found)
    assert f"{words}." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 lines"), (1, "1 line"), (1_234, "1,234 lines")]
)
def test_a_count_agrees_with_its_noun(number: int, text: str) -> None:
    assert output.counted(number, "line") == text


def test_one_request_that_is_not_billed_is_one_request(capsys: pytest.CaptureFixture[str]) -> None:
    line = dict.fromkeys(_invoice()["lines"][0]) | {
        "kind": "not_billed",
        "description": "Failed",
        "reason": "failed",
        "amount": "0",
    }
    print_invoice(_invoice(lines=[line | {"quantity": "1"}]))
    assert "1 request " in capsys.readouterr().out


def test_a_test_invoice_is_marked_not_payable(capsys: pytest.CaptureFixture[str]) -> None:
    print_invoice(_invoice(livemode=False))
    assert "test mode, not payable" in capsys.readouterr().out


def test_an_invoice_of_a_schedules_batch_names_it_and_steers_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_invoice(_invoice(schedule={"id": "sched_1", "name": f"Nightly {HOSTILE}"}))
    printed = capsys.readouterr().out
    assert "Schedule Nightly \\x1b[2J" in printed
    assert "(sched_1)" in printed
    assert "\x1b" not in printed


def test_a_narrow_terminal_folds_names_and_never_cuts_a_figure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console = Console(width=60, force_terminal=True, no_color=True, highlight=False)
    print_invoice(_invoice(), console)
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert "1.22406954" in printed


def test_no_color_leaves_no_escape_sequence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    Console(force_terminal=True, markup=False).print("text", style="red")
    assert "\x1b[31m" not in capsys.readouterr().out


LINK = "\x1b]8;;http://e.org\x07click\x1b]8;;\x07"
TRICKS = [
    LINK,
    "\x1b[31mred",
    "\x9b2J",
    "\u202egpj.exe",
    "a\rb",
    "[red]x[/red]",
    "[link=http://e.org]x[/link]",
    ":smile:",
    "\u2028",
    "\x07",
]


@pytest.mark.parametrize("text", TRICKS)
@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_console_prints_nothing_that_steers_a_terminal_even_where_it_was_forgotten(
    text: str, is_terminal: bool
) -> None:
    written = io.StringIO()
    console = output.SafeConsole(
        file=written,
        force_terminal=is_terminal,
        width=200,
        markup=False,
        emoji=False,
        highlight=False,
    )
    console.print(f"before {text} after\nnext", soft_wrap=True)
    console.print(Text(f"before {text} after"))
    with Progress(TextColumn("{task.description}", markup=False), console=console) as bar:
        bar.add_task(text)
    printed = written.getvalue()
    # The other sequences are Rich's own: colours, the cursor, the line that is redrawn.
    ours = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed).replace("\r", "")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e]", ours)
    assert "\x1b]8" not in printed
    assert "\x1b[31m" not in printed
    assert "\x1b[2J" not in printed
    for shown in ("[red]x[/red]", "[link=http://e.org]x[/link]", ":smile:"):
        assert (shown in ours) is (text == shown)
    assert "\nnext" in ours


def test_an_id_from_a_server_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_line(f"batch_{HOSTILE}")
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "\x1b" not in printed


def test_json_is_ascii_without_controls(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({HOSTILE: [HOSTILE, LINK]})
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert printed.replace("\n", "").isprintable()
