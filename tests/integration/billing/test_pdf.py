"""PDFs of invoices and statements: the same bytes each time, exact amounts, inert names."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pypdf import PdfReader
from typer.testing import CliRunner

from tests import billing
from tests.billing import REFUSED, Ran
from tests.integration.conftest import Api
from xalen_batch import db, ids
from xalen_batch.accounts import accounts
from xalen_batch.billing import pdf
from xalen_batch.cli.main import app
from xalen_batch.endpoints.usage import Usage
from xalen_batch.errors import NotFound

INVOICE: dict[str, Any] = {
    "id": "inv_1",
    "account_id": "acct_1",
    "batch_id": "batch_1",
    "schedule": None,
    "livemode": True,
    "currency": "USD",
    "issued_at": 1_795_800_000,
    "lines": [
        {
            "description": "m, input tokens",
            "quantity": "61203477",
            "unit_price": "0.02",
            "reason": None,
            "amount": "1.22406954",
        }
    ],
    "total": "0.000000000000000000000000000123456789",
}
STATEMENT: dict[str, Any] = {
    "id": None,
    "month": "2026-03",
    "account_id": "acct_1",
    "livemode": False,
    "currency": "USD",
    "issued_at": None,
    "lines": [{"description": "Batch batch_1", "amount": "1.3048530695"}],
    "exact_total": "1.3048530695",
    "total": "1.30",
    "has_more": False,
}


def words(content: bytes) -> str:
    """The text of a PDF, as another library reads it."""
    pages = PdfReader(io.BytesIO(content)).pages
    return "\n".join(page.extract_text() for page in pages)


def test_the_same_object_gives_the_same_bytes() -> None:
    for make, value in ((pdf.of_invoice, INVOICE), (pdf.of_statement, STATEMENT)):
        content = make(value, "acme")
        assert content == make(value, "acme")
        assert content.startswith(b"%PDF-")
        assert content != make(value, "acme-eu")


def test_amounts_are_exact() -> None:
    found = words(pdf.of_invoice(INVOICE, "acme"))
    assert INVOICE["total"] in found.replace("\n", "")
    assert {"61203477", "0.02", "1.22406954"} <= set(found.split())
    statement = words(pdf.of_statement(STATEMENT, "acme"))
    assert {"1.3048530695", "1.30", "draft:"} <= set(statement.split())


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Été Ελλάδα Москва", "Été Ελλάδα Москва"),
        ("日本", r"\u65e5\u672c"),
        ("a\x00\x1b[31m\nb", r"a\x00\x1b[31m\nb"),
        ("\u202eevil", r"\u202eevil"),
        (") Tj ET endstream endobj /JS (x) <b>**x**</b> --y--", None),
    ],
)
def test_names_are_shown_and_inert(name: str, shown: str | None) -> None:
    content = pdf.of_invoice(INVOICE, name)
    assert (shown or name).replace(" ", "") in words(content).replace("\n", "").replace(" ", "")
    assert b"/JS" not in content
    assert b"/URI" not in content


def test_a_font_of_the_operator_shows_further_scripts(
    configure: Callable[..., None], tmp_path: Path
) -> None:
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    builder = FontBuilder(1_000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "day"])
    builder.setupCharacterMap({ord("日"): "day"})
    pen = TTGlyphPen(None)
    builder.setupGlyf({".notdef": pen.glyph(), "day": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "day": (1_000, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Day", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(str(tmp_path / "day.ttf"))
    configure(pdf_fonts=tmp_path / "day.ttf")
    with_font = pdf.of_invoice(INVOICE, "日")
    assert b"Day" in with_font
    assert r"\u65e5" not in words(with_font)


def test_a_long_statement_says_that_it_is_not_whole() -> None:
    lines = STATEMENT["lines"] * pdf.MOST_LINES
    long = STATEMENT | {"lines": lines, "has_more": True, "total": None, "exact_total": None}
    assert "first1000lines" in words(pdf.of_statement(long, "acme")).replace(" ", "").replace(
        "\n", ""
    )


def test_without_the_extra_it_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fpdf", None)
    with pytest.raises(NotFound, match="the extra `pdf`"):
        pdf.of_invoice(INVOICE, "acme")


def test_the_api_and_the_commands_give_it(api: Api, tmp_path: Path) -> None:
    with db.transaction() as session:
        caller = accounts.authenticate(session, api.key)
    batch = billing.ended([Ran(Usage(1_234, 567)), Ran(REFUSED)], caller)
    id, target = ids.render("batch", batch.id), tmp_path / "out.pdf"
    connection = ["--base-url", f"http://127.0.0.1:{api.port}", "--api-key", api.key]
    month = f"{batch.created_at:%Y-%m}"
    for path, arguments in (
        (f"/v1/batches/{id}/invoice/pdf", ["invoice", id]),
        (f"/v1/statements/{month}/pdf", ["statement", month]),
    ):
        answer = api.ask("GET", path)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/pdf")
        assert "0.00002368" in words(answer.body).split()
        result = CliRunner().invoke(app, [*arguments, "--pdf", str(target), *connection])
        assert result.exit_code == 0, result.output
        assert target.read_bytes() == answer.body
