"""`schedules add`: adds lines of a file to a schedule's inbox."""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import typer

from xalen_batch.cli import clock, progress
from xalen_batch.cli.client import ApiClient, ApiOptions
from xalen_batch.cli.failures import INTERRUPTED, ApiError, Failed
from xalen_batch.cli.joined import InputFile, joined
from xalen_batch.cli.option_groups import with_option_groups
from xalen_batch.cli.options import Json, ScheduleId, examples
from xalen_batch.cli.output import counted, figure, print_json, safe, say

# The most bytes of one request, which is accepted or refused as a whole.
PIECE_LINES = 1_000
PIECE_BYTES = 4 * 1024 * 1024
# No server takes a longer line: the file is no JSONL.
LONGEST_LINE = 64 * 1024 * 1024
# Codes of errors of the schedule, not of the lines.
OF_SCHEDULE = {"no_inbox", "schedule_ended", "inbox_full"}

commands = typer.Typer()


@dataclass(frozen=True)
class LineRange:
    """The lines `first` to `last` of a file, numbered from 1, with their bytes."""

    first: int
    last: int
    content: bytes
    end: int


@commands.command(
    epilog=examples(
        "xalen-batch schedules add sched_0192… requests.jsonl",
        "make-requests | xalen-batch schedules add sched_0192… -",
    )
)
@with_option_groups
def add(
    schedule_id: ScheduleId,
    file: InputFile,
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """Put requests into a schedule's inbox for its next run.

    A request that already waits there is not added again.
    """
    client = api.connect()
    with joined([file]) as source:
        added = _sent(client, schedule_id, source.path, source.name)
    if as_json:
        print_json(added)
    known = f", {figure(added['known'])} known already" if added["known"] else ""
    accepted = f"{counted(added['accepted'], 'request')} accepted{known}"
    if added["pending"] is None:
        # A key with the scope to add may lack the scope to read.
        say(f"{accepted}.")
    else:
        say(f"{accepted}; {figure(added['pending'])} pending. {_when(client, added)}")


def _sent(client: ApiClient, schedule_id: str, path: Path, name: str) -> dict[str, Any]:
    """The last answer of the server, with the sums over all pieces.

    Failed at the first piece that is refused.
    """
    size, answer, accepted, known, last = path.stat().st_size, dict[str, Any](), 0, 0, 0
    with progress.transfer("adding") as moved:
        for piece in _pieces(path):
            try:
                answer = client.post_lines(f"/schedules/{schedule_id}/requests", piece.content)
            except Failed as error:
                raise Failed(
                    f"{_placed(error, piece, name)}{_remedy(last)}", error.exit_code
                ) from None
            except KeyboardInterrupt:
                raise Failed(
                    f"Stopped in {_lines(piece)}, which may be accepted.{_remedy(last)}",
                    INTERRUPTED,
                ) from None
            accepted, known, last = (
                accepted + answer["accepted"],
                known + answer["known"],
                piece.last,
            )
            moved(piece.end, size)
    if not answer:
        raise Failed(f"{name} has no requests. Write one JSON object on each line.")
    return answer | {"accepted": accepted, "known": known}


def _placed(error: Failed, piece: LineRange, name: str) -> str:
    """A piece's refusal with the line number of the whole file, if it names a line."""
    message = str(error)
    line = re.match(r"Line ([0-9,]+)", message)
    if line is None:
        is_of_lines = (
            isinstance(error, ApiError)
            and error.status in (400, 413)
            and error.code not in OF_SCHEDULE
        )
        return f"{safe(name)}, {_lines(piece)}: {message}" if is_of_lines else message
    number = piece.first - 1 + int(line[1].replace(",", ""))
    counted_there = (
        f" (It counts from 1 at line {figure(piece.first)}.)"
        if piece.first > 1 and " on line " in message
        else ""
    )
    return f"{safe(name)}:{number}{message.removeprefix(line[0])}{counted_there}"


def _lines(piece: LineRange) -> str:
    return (
        f"line {figure(piece.first)}"
        if piece.first == piece.last
        else f"lines {figure(piece.first)} to {figure(piece.last)}"
    )


def _remedy(last: int) -> str:
    if not last:
        return ""
    there = "Line 1 is" if last == 1 else f"Lines 1 to {figure(last)} are"
    return (
        f" {there} accepted; add the whole file again when it is right: what waits still is not"
        " added twice."
    )


def _pieces(path: Path) -> Iterator[LineRange]:
    """Cut a file into pieces of whole lines. Blank lines are kept, so that line numbers stay right.

    A long line is a piece of its own.
    """
    first, size, end, held = 1, 0, 0, list[bytes]()
    with path.open("rb") as lines:
        for number, line in enumerate(iter(partial(lines.readline, LONGEST_LINE + 1), b""), 1):
            if len(line) > LONGEST_LINE:
                raise Failed(
                    f"Line {figure(number)} has more than {figure(LONGEST_LINE)} bytes. Is it JSON"
                    " Lines, one request a line?"
                )
            if held and (len(held) == PIECE_LINES or size + len(line) > PIECE_BYTES):
                yield from _piece(first, held, end)
                first, size, held = number, 0, []
            held.append(line)
            size += len(line)
            end += len(line)
    yield from _piece(first, held, end)


def _piece(first: int, lines: list[bytes], end: int) -> Iterator[LineRange]:
    if any(line.strip() for line in lines):
        yield LineRange(first, first + len(lines) - 1, b"".join(lines), end)


def _when(client: ApiClient, added: dict[str, Any]) -> str:
    id, fires = added["schedule_id"], added["next_fire_at"]
    if fires is None:
        return f"The schedule is paused or has ended; `xalen-batch schedules run {id}` runs them."
    local = ""
    # An error here does not matter: the requests are accepted.
    with suppress(Failed):
        local = f"{clock.local(client.get(f'/schedules/{id}')['next_fire_local'])}, "
    return f"They run {clock.until(fires)}: {local}{clock.utc(fires)}."
