"""Invoices and statements as PDF, from the objects that the API shows.

The same object gives the same bytes. Needs the extra `pdf` (docs/decisions/0080).
"""

import os
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from typing import TYPE_CHECKING, Any

from xalen_batch.config import settings
from xalen_batch.errors import NotFound

if TYPE_CHECKING:
    from fpdf import FPDF

MEDIA_TYPE = "application/pdf"
# Most lines of a statement that are printed; the CSV and the API have all of them.
MOST_LINES = 1_000
FAMILY = "sans"
FONT = ("fontpkg_noto_sans", "files/NotoSans[wdth,wght].ttf")
# Points, and millimetres of a row.
TITLE, TEXT, SMALL = 16, 10, 8
LINE = 5.0


def of_invoice(invoice: Mapping[str, Any], account: str) -> bytes:
    """A batch's invoice (`invoices.render`) of an account with this name."""
    pdf = _document(invoice["issued_at"])
    _head(
        pdf,
        f"Invoice {invoice['id']}",
        [
            ("Account", f"{account} ({invoice['account_id']})"),
            ("Batch", invoice["batch_id"]),
            *(
                [("Schedule", f"{invoice['schedule']['name'] or ''}")]
                if invoice["schedule"]
                else ()
            ),
            ("Issued", _moment(invoice["issued_at"])),
            ("Mode", "live" if invoice["livemode"] else "test: not payable"),
        ],
    )
    rows = [
        (
            line["description"] + (f" ({line['reason']})" if line["reason"] else ""),
            line["quantity"] or "",
            line["unit_price"] or "",
            line["amount"],
        )
        for line in invoice["lines"]
    ]
    rows.append(("Total, exact", "", "", f"{invoice['total']} {invoice['currency']}"))
    _table(pdf, ("Item", "Quantity", "Unit price", "Amount"), rows, widths=(46, 16, 14, 24))
    _note(
        pdf,
        "Unit prices are USD per million tokens; of a discount its rate. The amount of a batch is"
        " not rounded: the statement of the month rounds once.",
    )
    return bytes(pdf.output())


def of_statement(statement: Mapping[str, Any], account: str) -> bytes:
    """A month's statement (`statement_pages.page` with MOST_LINES) of an account with this name."""
    month = datetime.strptime(statement["month"], "%Y-%m").replace(tzinfo=UTC)
    issued_at = statement["issued_at"]
    pdf = _document(int(month.timestamp()) if issued_at is None else issued_at)
    _head(
        pdf,
        f"Statement {statement['month']}",
        [
            ("Account", f"{account} ({statement['account_id']})"),
            ("Statement", statement["id"] or "draft: not issued yet"),
            *([] if issued_at is None else [("Issued", _moment(issued_at))]),
            ("Mode", "live" if statement["livemode"] else "test: not payable"),
        ],
    )
    rows = [(line["description"], line["amount"]) for line in statement["lines"]]
    if statement["total"] is not None:
        rows.append(("Sum, exact", statement["exact_total"]))
        rows.append(("Total", f"{statement['total']} {statement['currency']}"))
    _table(pdf, ("Item", "Amount"), rows, widths=(70, 30))
    if statement["has_more"]:
        _note(
            pdf,
            f"These are the first {len(statement['lines'])} lines. The CSV of the month's invoices"
            " has all of them.",
        )
    return bytes(pdf.output())


def _document(created_at: int) -> "FPDF":
    """An empty page. The date in the file is that of the object, so that bytes do not change."""
    try:
        from fpdf import FPDF

        pdf = FPDF(format="A4")
        with resources.as_file(resources.files(FONT[0]) / FONT[1]) as path:
            pdf.add_font(FAMILY, fname=str(path))
    except ModuleNotFoundError as error:
        raise NotFound(
            "This server makes no PDFs. Ask the operator, who installs the extra `pdf`: pip install"
            " 'xalen-batch[pdf]'. The CSV and the JSON have the same figures."
        ) from error
    further = [name for name in settings().pdf_fonts.split(os.pathsep) if name]
    for number, name in enumerate(further):
        pdf.add_font(f"{FAMILY}{number}", fname=name)
    pdf.set_fallback_fonts([f"{FAMILY}{number}" for number in range(len(further))])
    pdf.set_creation_date(datetime.fromtimestamp(created_at, UTC))
    pdf.set_auto_page_break(True, margin=15)
    pdf.add_page()
    pdf.set_font(FAMILY, size=TEXT)
    return pdf


def _head(pdf: "FPDF", title: str, fields: Sequence[tuple[str, str]]) -> None:
    pdf.set_font(FAMILY, size=TITLE)
    pdf.multi_cell(0, 2 * LINE, _shown(pdf, title), new_x="LMARGIN", new_y="NEXT")
    pdf.set_font(FAMILY, size=TEXT)
    for name, value in fields:
        pdf.cell(30, LINE, name)
        pdf.multi_cell(0, LINE, _shown(pdf, value), new_x="LMARGIN", new_y="NEXT")
    pdf.ln(LINE)


def _table(
    pdf: "FPDF", heads: Sequence[str], rows: Sequence[Sequence[str]], *, widths: Sequence[int]
) -> None:
    """A table that repeats its heads on each page; columns behind the first are right-aligned."""
    from fpdf.fonts import FontFace

    pdf.set_font(FAMILY, size=SMALL)
    align = ("LEFT", *("RIGHT" for _ in heads[1:]))
    with pdf.table(
        col_widths=tuple(widths),
        text_align=align,
        line_height=LINE,
        borders_layout="HORIZONTAL_LINES",
        # Bold needs a second font.
        headings_style=FontFace(),
    ) as table:
        table.row([_shown(pdf, head) for head in heads])
        for row in rows:
            table.row([_shown(pdf, cell) for cell in row])


def _note(pdf: "FPDF", text: str) -> None:
    pdf.ln(LINE)
    pdf.multi_cell(0, LINE, text, new_x="LMARGIN", new_y="NEXT")


def _shown(pdf: "FPDF", text: str) -> str:
    """A text on one line: control characters, and those that no font has, as escapes."""
    return "".join(char if _is_shown(pdf, char) else _escape(char) for char in text)


def _is_shown(pdf: "FPDF", char: str) -> bool:
    if unicodedata.category(char)[0] == "C" or char in "\u2028\u2029":
        return False
    return any(ord(char) in font.cmap for font in pdf.fonts.values())  # type: ignore[union-attr]


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode()


def _moment(timestamp: int) -> str:
    return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M:%S} UTC"
