"""Tables of any list fit 80 columns, and no id in them is split."""

import io
from collections.abc import Sequence

import pytest
from rich.console import Console
from rich.text import Text

from xalen_batch.cli import audit, batch_view, files, keys, output
from xalen_batch.cli.stacked import Layout, names_of, stacked

LONG = "0123456789abcdef" * 2
BATCH = (f"batch_{LONG}", "in_progress", "50,000/50,000", "50,000", "/v1/chat/completions", "2026-11-28 19:30:00 UTC")
KEY = (
    f"key_{LONG}", "xln_test_0192…", "the logistics department", "nightly tickets", "submit,read,billing,admin", "2026-11-28", "revoked"
)  # fmt: skip
ENTRY = (
    "2026-11-28 19:30:00 UTC",
    "cli:operator",
    "api_key.rotated",
    f"key_{LONG}",
    "live",
    f"name=up rotated_from=key_{LONG} scopes=read",
)
FILE = (
    f"file-{LONG}", "support-tickets.jsonl", "209,715,200", "batch_output", "2026-11-28 19:30:00 UTC", "2026-12-28 19:30:00 UTC"
)  # fmt: skip
LISTS = [
    (batch_view.BATCHES, BATCH, ()),
    (keys.KEYS, KEY, ("account", "name", "scopes")),
    (files.FILES, FILE, ("name",)),
    (audit.ENTRIES, ENTRY, ("who", "change")),
]


def printed(layouts: Sequence[Layout], row: Sequence[object], folded: Sequence[str], width: int, *, terminal: bool = True) -> str:
    console = Console(width=width, force_terminal=terminal, no_color=True, color_system=None, file=io.StringIO())
    output.show(stacked(layouts, [row], folded=folded, console=console), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160, 240])
@pytest.mark.parametrize(("layouts", "row", "folded"), LISTS, ids=["list", "keys list", "files list", "audit"])
def test_no_word_of_a_row_is_split_and_no_line_is_too_long(
    layouts: Sequence[Layout], row: Sequence[str], folded: Sequence[str], width: int
) -> None:
    shown = printed(layouts, row, folded, width)
    for word in " ".join(row).split():
        assert word in shown
    assert max(map(len, shown.splitlines())) <= width


@pytest.mark.parametrize(("layouts", "row", "folded"), LISTS, ids=["list", "keys list", "files list", "audit"])
def test_every_layout_has_every_cell(layouts: Sequence[Layout], row: Sequence[str], folded: Sequence[str]) -> None:
    names = names_of(layouts[0])
    assert len(names) == len(row)
    assert set(folded) <= set(names)
    for layout in layouts:
        assert sorted(names_of(layout)) == sorted(names)


def test_a_pipe_gets_a_row_on_one_line() -> None:
    shown = printed(batch_view.BATCHES, BATCH, (), 10_000, terminal=False)
    assert shown.splitlines()[-1].split() == " ".join(BATCH).split()


def test_a_cell_of_a_users_is_made_safe() -> None:
    shown = printed(((("a",), ("b",)),), ("\x1b[2J", Text("ours")), (), 80)
    assert "\\x1b[2J" in shown
    assert "\x1b" not in shown
