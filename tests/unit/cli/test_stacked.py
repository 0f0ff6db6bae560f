"""Tables of any list fit 80 columns, and no id in them is split."""

import io
from collections.abc import Sequence

import pytest
from rich.console import Console
from rich.text import Text

from xalen_batch.cli import (
    audit,
    batch_view,
    files,
    invoices,
    keys,
    models,
    output,
    prices,
    roster,
    usage,
    validate,
)
from xalen_batch.cli.stacked import Layout, names_of, stacked

LONG = "0123456789abcdef" * 2
BATCH = (
    f"batch_{LONG}",
    "in_progress",
    "50,000/50,000",
    "50,000",
    "/v1/chat/completions",
    "2026-11-28 19:30:00 UTC",
)
KEY = (
    f"key_{LONG}",
    "xln_test_0192…",
    "test",
    "the logistics department",
    "nightly tickets",
    "submit,read,billing,admin",
    "2026-11-28",
    "revoked",
)
ENTRY = (
    "2026-11-28 19:30:00 UTC",
    "cli:operator",
    "api_key.rotated",
    f"key_{LONG}",
    "live",
    f"name=up rotated_from=key_{LONG} scopes=read",
)
FILE = (
    f"file-{LONG}",
    "support-tickets.jsonl",
    "209,715,200",
    "batch_output",
    "2026-11-28 19:30:00 UTC",
    "2026-12-28 19:30:00 UTC",
)
MODEL = (
    "a-model-with-a-long-name",
    "131,072",
    "/v1/rerank, /v1/chat/completions",
    "0.003",
    "0.0003",
    "12.345",
    "nothing: refused",
)
LOCAL = (
    "a-model-with-a-long-name",
    "BGE Reranker v2",
    "568M",
    "8,192",
    "30 ms",
    "/v1/rerank, /v1/chat/completions",
    "simulated",
)
PRICE = (
    "a-model-with-a-long-name",
    "cached_input",
    "live",
    "0.0000001",
    "2026-11-28 19:30:00 UTC",
    "2026-11-29 19:30:00 UTC",
)
ESTIMATE = (
    "a-model-with-a-long-name",
    "50,000",
    "1,000,000,000",
    "100,000,000",
    "6,000,000,000",
    "1234.00000005",
    "12345.00000005",
)
ACCOUNT = (f"acct_{LONG}", "the logistics department", "1,000", "100", "500", "disabled 2026-11-28")
USED = (
    "the logistics department",
    "live",
    "1,000",
    "6,000,000,000",
    "100,000,000",
    "12345.00000005",
    "500",
    "12345.00000005",
)
CHARGE = (
    "a-model-with-a-long-name, requests that did not succeed",
    "output, counted",
    "1,000,000,000",
    "0.003 per 1M",
    "-12345.00000005",
)
LISTS = [
    (batch_view.BATCHES, BATCH, ()),
    (keys.KEYS, KEY, ("account", "name", "scopes")),
    (roster.ACCOUNTS, ACCOUNT, ("name",)),
    (usage.COLUMNS, USED, ("account",)),
    (files.FILES, FILE, ("name",)),
    (audit.ENTRIES, ENTRY, ("who", "change")),
    (models.MODELS, MODEL, ("endpoints", "answered by")),
    (models.CATALOG, LOCAL, ("name", "endpoints")),
    (prices.PRICES, PRICE, ()),
    (validate.ESTIMATE, ESTIMATE, ()),
    (invoices.INVOICE, CHARGE, ("item",)),
    (invoices.STATEMENT, (f"Batch batch_{LONG}, 2026-11-28", "-12345.00000005"), ("item",)),
    (
        invoices.DIFFERENCES,
        (f"batch_{LONG}", "requests listed as not billed", "0.0000000012", "0.0000000013"),
        ("what",),
    ),
]
COMMANDS = [
    *(
        "list",
        "keys list",
        "accounts list",
        "accounts usage",
        "files list",
        "audit",
        "models",
        "models --local",
        "prices list",
        "validate",
    ),
    *("invoice", "statement", "reconcile"),
]


def printed(
    layouts: Sequence[Layout],
    row: Sequence[object],
    folded: Sequence[str],
    width: int,
    *,
    terminal: bool = True,
) -> str:
    console = Console(
        width=width, force_terminal=terminal, no_color=True, color_system=None, file=io.StringIO()
    )
    output.show(stacked(layouts, [row], folded=folded, console=console), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160, 240])
@pytest.mark.parametrize(("layouts", "row", "folded"), LISTS, ids=COMMANDS)
def test_no_word_of_a_row_is_split_and_no_line_is_too_long(
    layouts: Sequence[Layout], row: Sequence[str], folded: Sequence[str], width: int
) -> None:
    shown = printed(layouts, row, folded, width)
    for word in " ".join(row).split():
        assert word in shown
    assert max(map(len, shown.splitlines())) <= width


@pytest.mark.parametrize(("layouts", "row", "folded"), LISTS, ids=COMMANDS)
def test_every_layout_has_every_cell(
    layouts: Sequence[Layout], row: Sequence[str], folded: Sequence[str]
) -> None:
    names = names_of(layouts[0])
    assert len(names) == len(row)
    assert set(folded) <= set(names)
    for layout in layouts:
        assert sorted(names_of(layout)) == sorted(names)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_total_is_set_apart_from_what_it_sums_up(terminal: bool) -> None:
    console = Console(
        width=80, force_terminal=terminal, no_color=True, color_system=None, file=io.StringIO()
    )
    table = stacked(
        invoices.STATEMENT,
        [("one", "1"), ("two", "2"), ("total", "3")],
        right=("amount",),
        has_total=True,
        console=console,
    )
    output.show(table, console)
    assert isinstance(console.file, io.StringIO)
    assert [line.split() for line in console.file.getvalue().splitlines()][2:] == [
        ["one", "1"],
        ["two", "2"],
        [],
        ["total", "3"],
    ]


def test_a_pipe_gets_a_row_on_one_line() -> None:
    shown = printed(batch_view.BATCHES, BATCH, (), 10_000, terminal=False)
    assert shown.splitlines()[-1].split() == " ".join(BATCH).split()


def test_a_cell_of_a_users_is_made_safe() -> None:
    shown = printed(((("a",), ("b",)),), ("\x1b[2J", Text("ours")), (), 80)
    assert "\\x1b[2J" in shown
    assert "\x1b" not in shown
