"""Rows of CSV are read back as they were, and no text is a formula."""

import csv
import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xalen_batch import csv_rows

FORMULAS = [
    *("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\tplain", " =1", "\u00a0=1"),
    *("\uff1d1", "\uff0b1", "\uff0d1", "\uff20SUM(A1)", "\ufe661", "\u200b=1", "\ufeff=1"),
    *("\x00=1", "\x1b=1", "\u202e=1", '=cmd|" /C calc"!A0', "-2+3+cmd|' /C calc'!A0"),
]


@pytest.mark.parametrize("value", FORMULAS, ids=ascii)
def test_a_formula_becomes_text(value: str) -> None:
    assert csv_rows.text(value) == f"'{value}"


@pytest.mark.parametrize(
    "value", ["a", "1-1", "a=b", "", "été", "日本語", " a", "(=1)", "#1", '"=1']
)
def test_other_texts_stay_as_they_are(value: str) -> None:
    assert csv_rows.text(value) == value


def test_nothing_is_an_empty_cell() -> None:
    assert csv_rows.text(None) == ""


@given(st.text())
def test_a_text_is_its_cell_without_the_first_apostrophe(value: str) -> None:
    assert csv_rows.text(value).removeprefix("'") == value
    seen = csv_rows.text(value).lstrip()[:1]
    assert unicodedata.normalize("NFKC", seen)[:1] not in ("=", "+", "-", "@")


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8"), max_size=9), min_size=2)))
def test_rows_are_read_back(rows: list[list[str]]) -> None:
    content = csv_rows.render(rows)
    assert list(csv.reader(io.StringIO(content.decode(), newline=""))) == rows
    assert content.count(b"\r\n") >= len(rows)


def test_quotes_and_line_breaks_are_those_of_rfc_4180() -> None:
    assert csv_rows.render([["a,b", 'c"d', "e\nf", "g"]]) == b'"a,b","c""d","e\nf",g\r\n'


def test_a_lone_surrogate_is_replaced() -> None:
    assert csv_rows.render([["a\ud800", ""]]) == b"a?,\r\n"
