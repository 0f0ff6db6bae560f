"""The lines of an ended batch with their usage and charge, in order, a page at a time.

They are read from rows, or from the columns of a sealed batch. Those lack the custom ids, which are
in the objects of the output and error file; for a deleted or expired file, in the input file.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar

import msgspec
from sqlalchemy import select, text

from xalen_batch import db, jsonl, storage
from xalen_batch.billing.charges import USAGE_COUNTED, Tariff
from xalen_batch.config import settings
from xalen_batch.endpoints.usage import Usage
from xalen_batch.models import Batch, File, Result
from xalen_batch.models.files import FilePart
from xalen_batch.results import content, merged
from xalen_batch.results.explain import Ended
from xalen_batch.storage import marks

# Rows of a page. A page of a sealed batch is a row of `sealed_lines`.
PAGE_ROWS = 5_000


class ChargedLine(NamedTuple):
    """A line that has ended. `custom_id` is empty if every file that had it is gone.

    `reason`: why it is not billed, as on the invoice; None: it is billed.
    """

    number: int
    custom_id: str
    ended: Ended
    flag: str | None

    @property
    def reason(self) -> str | None:
        if self.ended.amount is not None:
            return None
        return self.ended.error_code or f"http_{self.ended.status_code}"


def pages(batch: Batch) -> Iterator[list[ChargedLine]]:
    """All lines of an ended batch, by number.

    Each page is one statement, so neither memory nor a transaction grows with the batch.
    """
    last, lines = 0, 0
    while lines < batch.total and (page := _rows(batch, last)):
        yield page
        last, lines = page[-1].number, lines + len(page)
    # Of a sealed batch. Its rows may be dropped while they are read.
    if lines < batch.total:
        yield from _sealed_pages(batch, last)


_COLUMNS = (
    Result.line_no,
    Result.custom_id,
    Result.model,
    Result.status_code,
    Result.error_code,
    Result.flag,
    Result.input_tokens,
    Result.cached_tokens,
    Result.output_tokens,
    Result.reasoning_tokens,
    Result.amount,
)


def _rows(batch: Batch, after: int) -> list[ChargedLine]:
    with db.reading() as session:
        rows = session.execute(
            select(*_COLUMNS)
            .where(Result.batch_id == batch.id, Result.line_no > after)
            .order_by(Result.line_no)
            .limit(PAGE_ROWS)
        ).all()
    return [_line(number, custom_id, values, amount) for number, custom_id, *values, amount in rows]


_SEALED = text("""
    SELECT first_line, lines, line_nos, models, status_codes, error_codes, flags, input_tokens,
        cached_tokens, output_tokens, reasoning_tokens, amounts
    FROM sealed_lines WHERE batch_id = :batch_id AND first_line > :first
    ORDER BY first_line LIMIT 1
""")


def _sealed_pages(batch: Batch, after: int) -> Iterator[list[ChargedLine]]:
    """The lines behind number `after`, from the columns of a sealed batch."""
    names = _CustomIds(batch)
    tariffs = {
        model: Tariff(price, batch.discount_rate) for model, price in batch.price_snapshot.items()
    }
    first = 0
    while (found := _sealed_row(batch, first)) is not None:
        first, lines, numbers, *columns, amounts = found
        numbers = numbers or range(first, first + lines)
        page = []
        rows = zip(numbers, amounts or [None] * lines, *columns, strict=True)
        for number, amount, *values in rows:
            if number > after:
                line = _line(number, names.of(number), values, amount)
                if amounts is None and line.ended.status_code and line.ended.status_code < 300:
                    line = _by_price(line, tariffs)
                page.append(line)
        if page:
            yield page


def _sealed_row(batch: Batch, first: int) -> Sequence[Any] | None:
    with db.reading() as session:
        return session.execute(_SEALED, {"batch_id": batch.id, "first": first}).one_or_none()


def _line(
    number: int, custom_id: str, columns: Sequence[Any], amount: Decimal | None
) -> ChargedLine:
    model, status, error, flag, read, cached, written, reasoning = columns
    usage = Usage(read, written, cached_tokens=cached, reasoning_tokens=reasoning)
    is_counted = flag is not None and USAGE_COUNTED in flag
    ended = Ended(model, status, error, usage, is_counted, amount)
    return ChargedLine(number, custom_id, ended, flag)


def _by_price(line: ChargedLine, tariffs: dict[str, Tariff]) -> ChargedLine:
    """The line with the amount that follows from the prices (models/sealed_lines.py)."""
    tariff = tariffs.get(line.ended.model) or Tariff({}, Decimal(0))
    amount = tariff.charge(line.ended.usage).amount
    return line._replace(ended=replace(line.ended, amount=amount))


_Name = tuple[int, str]
T = TypeVar("T")
# Above the number of every line.
_END = 2**63


class _Named(msgspec.Struct):
    custom_id: str = ""


_named = msgspec.json.Decoder(_Named).decode


class _CustomIds:
    """The custom ids of a sealed batch, for ascending numbers of lines. One thread calls it."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._results = _Ascending(self._of_results())
        # Opened for the first line whose file is gone.
        self._input = _Ascending(self._of_input())

    def of(self, number: int) -> str:
        """The custom id of a line; "" if all files with it are gone."""
        return self._results.of(number) or self._input.of(number) or ""

    def _of_results(self) -> Iterator[_Name]:
        ids = (self._batch.output_file_id, self._batch.error_file_id)
        with db.reading() as session:
            files = session.scalars(
                select(File).where(
                    File.id.in_([id for id in ids if id]),
                    File.deleted_at.is_(None),
                    File.sha256.is_not(None),
                )
            ).all()
        lines = heapq.merge(*(_until_gone(_lines_of(file)) for file in files))
        for number, line, _ in lines:
            yield number, _named(line).custom_id

    def _of_input(self) -> Iterator[_Name]:
        if self._batch.input_file_id is None:
            return
        key = storage.key(self._batch.input_file_id)
        lines = jsonl.lines(_input_chunks(key), longest=settings().max_line_bytes)
        for span, line in _until_gone(lines):
            try:
                yield span.line_no, _named(line or b"").custom_id
            except (msgspec.DecodeError, UnicodeDecodeError):
                # A line that validation skipped.
                continue


def _lines_of(file: File) -> Iterator[merged.Numbered]:
    return merged.numbered(FilePart(file.part or FilePart.OUTPUT), content.whole(content.of(file)))


def _input_chunks(key: str) -> Iterator[bytes]:
    try:
        yield from storage.chunks(key)
    except FileNotFoundError:
        marks.confirm_gone(key)
        raise


def _until_gone(items: Iterator[T]) -> Iterator[T]:
    """The same items, up to the moment at which their object is deleted."""
    try:
        yield from items
    except FileNotFoundError:
        return


class _Ascending:
    """Looks up ascending numbers in an iterator of ascending numbers. One thread calls it."""

    def __init__(self, names: Iterator[_Name]) -> None:
        self._names = names
        self._next: _Name = (0, "")

    def of(self, number: int) -> str:
        """The name of a number; "" if the iterator has none."""
        while self._next[0] < number:
            self._next = next(self._names, (_END, ""))
        return self._next[1] if self._next[0] == number else ""
