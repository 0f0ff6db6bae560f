"""Fill: replace the placeholders of a template's lines, and bound the bytes of a file."""

from collections.abc import Callable, Iterable, Iterator

from xalen_batch import jsonl
from xalen_batch.config import settings
from xalen_batch.errors import InvalidRequest
from xalen_batch.schedules import templates
from xalen_batch.schedules.templates import Moment
from xalen_batch.validation.errors import Fault
from xalen_batch.validation.lines import too_long


class Unfit(Exception):
    """An input file cannot be assembled. `fault` is the error of its batch."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


def rendered(
    chunks: Iterable[bytes], moment: Moment, refuse: Callable[[Fault], None]
) -> Iterator[bytes]:
    """The lines of a template with their placeholders replaced.

    Passes the error of a line to `refuse`, which may raise; otherwise the line comes unchanged.
    """
    for span, raw in jsonl.lines(chunks, longest=settings().max_line_bytes):
        if raw is None:
            refuse(too_long(span, settings().max_line_bytes))
            yield b"\n"
            continue
        try:
            yield from templates.render([raw + b"\n"], moment)
        except InvalidRequest as error:
            refuse(Fault(error.code or "invalid_placeholder", error.message, span.line_no))
            yield raw + b"\n"


def capped(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same chunks. Unfit beyond the bytes that one batch can have."""
    size, most = 0, settings().max_file_bytes
    for chunk in chunks:
        size += len(chunk)
        if size > most:
            remedy = "Split it over several schedules, or shorten its lines."
            raise Unfit(
                Fault(
                    "file_too_large",
                    f"What the run reads has more than {most:,} bytes, the most of one batch."
                    f" {remedy}",
                )
            )
        yield chunk
