"""Sources: objects that other parties put into a folder; each object is taken by one run.

A `prefix` lies below the account's own part of the server's storage, `drop/<account id
hex>/<test|live>/`. A `folder` lies below one of the drop roots that the operator allows, which all
accounts can read.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import text
from sqlalchemy.orm import Session

from xalen_batch import storage
from xalen_batch.accounts.accounts import Owner
from xalen_batch.config import settings
from xalen_batch.errors import QUOTED_CHARS, InvalidRequest, Unavailable
from xalen_batch.models import Schedule, ScheduleRun
from xalen_batch.schedules import folders, templates, timeout
from xalen_batch.schedules.definition import Source
from xalen_batch.schedules.folders import Folder, Found
from xalen_batch.schedules.templates import Moment
from xalen_batch.storage import marks

UTF8_BOM = b"\xef\xbb\xbf"
# Any moment: whether a path is valid does not depend on it.
SOME_MOMENT = Moment(datetime(2026, 1, 31, tzinfo=UTC), ZoneInfo("UTC"), "run_0")
# Bytes. The primary key of consumed_objects has to fit into an index page.
LONGEST_PATH = 1_024
TAKEN = text(
    "SELECT path, version FROM consumed_objects WHERE schedule_id = :schedule_id AND path ="
    " ANY(CAST(:paths AS text[]))"
)
TAKE = text(
    "INSERT INTO consumed_objects (schedule_id, path, version, run_id) SELECT :schedule_id, path,"
    " version, :run_id FROM unnest(CAST(:paths AS text[]), CAST(:versions AS text[])) AS taken"
    " (path, version) ON CONFLICT DO NOTHING"
)


class NotReady(Exception):
    """The ready marker is missing."""


class ObjectGone(Exception):
    """An object of a manifest is gone or has changed."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path[:QUOTED_CHARS]!r} {problem}")
        self.path = path
        self.problem = problem


def check(owner: Owner, source: Source) -> None:
    """InvalidRequest for a source that could never be read.

    Its path leaves its base, or a placeholder is wrong. Unavailable if the file system hangs.
    """
    try:
        timeout.call(_share(source), lambda: _place(owner, source, SOME_MOMENT))
    except TimeoutError:
        raise Unavailable(
            "The place of this source does not answer right now. Send the request again in a few"
            " seconds."
        ) from None
    _filled(source.pattern, "source.pattern", SOME_MOMENT)
    if source.ready_marker is not None:
        _steps(source.ready_marker, "source.ready_marker", SOME_MOMENT)


def location(owner: Owner, source: Source) -> str:
    """The place for a source's objects: a path on the server, or one below its storage folder."""
    return source.folder or "/".join((*_own(owner).below, source.prefix or ""))


def find(
    session: Session, schedule: Schedule, source: Source, moment: Moment
) -> list[dict[str, Any]]:
    """The matching objects that no run has taken, {path, size, version}, sorted by path.

    NotReady if the marker is missing; InvalidRequest if the objects cannot be read, or are too many
    or too large for one batch; storage.UNAVAILABLE.
    """
    owner = Owner(schedule.account_id, schedule.livemode)
    pattern = _filled(source.pattern, "source.pattern", moment)
    marker = None
    if source.ready_marker is not None:
        marker = "/".join(_steps(source.ready_marker, "source.ready_marker", moment))
    place, files = timeout.call(_share(source), lambda: _listed(owner, source, moment, marker))
    with _named(place):
        objects = [
            found for found in files if found.path != marker and fnmatchcase(found.path, pattern)
        ]
        manifest = [_entry(place, found) for found in objects]
        if not source.repeat:
            manifest = _new(session, schedule, manifest)
        _check_size(manifest)
    return manifest


def _listed(
    owner: Owner, source: Source, moment: Moment, marker: str | None
) -> tuple["_Place", list[Found]]:
    """A source's place and its files. NotReady if the marker is missing."""
    # Check the store first: in an unavailable store every object seems missing.
    confirm(source)
    place = _place(owner, source, moment)
    with _named(place):
        if marker and not place.folder.has(marker):
            raise NotReady(
                f"There is no {marker[:QUOTED_CHARS]!r} in {place.name[:QUOTED_CHARS]!r} yet."
            )
        return place, place.folder.files()


def confirm(source: Source) -> None:
    """Raise marks.Elsewhere if a source lies in the server's storage and that is unavailable."""
    if source.folder is None:
        marks.confirm()


def take(
    session: Session, schedule: Schedule, run: ScheduleRun, manifest: Sequence[dict[str, Any]]
) -> None:
    """Pin the objects that a run reads.

    Later runs do not find these versions of the objects, unless the source has `repeat`.
    """
    run.manifest = list(manifest)
    session.flush()
    taken = {
        "schedule_id": schedule.id,
        "run_id": run.id,
        "paths": [entry["path"] for entry in manifest],
        "versions": [entry["version"] for entry in manifest],
    }
    session.execute(TAKE, taken)


def chunks(owner: Owner, source: Source, manifest: Sequence[dict[str, Any]]) -> Iterator[bytes]:
    """The objects in order, each without a byte order mark and with a newline at its end.

    ObjectGone, perhaps after some bytes of an object, if it is gone or has changed;
    storage.UNAVAILABLE.
    """
    share = _share(source)
    for entry in manifest:
        read = _read(owner, source, entry)
        try:
            # Each read may hang, so each has the timeout.
            while (chunk := timeout.call(share, partial(next, read, None))) is not None:
                yield chunk
        except PermissionError:
            raise ObjectGone(entry["path"], "cannot be read: permission denied") from None
        except OSError as error:
            if error.errno not in folders.NOT_THERE:
                raise
            raise ObjectGone(entry["path"], "is gone") from None


def _read(owner: Owner, source: Source, entry: dict[str, Any]) -> Iterator[bytes]:
    folder, path = _home(owner, source, entry["path"])
    size, last = 0, b"\n"
    with folder.open(path) as file:
        _check_version(file, entry)
        while chunk := file.read(storage.READ_CHUNK):
            yield chunk if size else chunk.removeprefix(UTF8_BOM)
            size, last = size + len(chunk), chunk[-1:]
        _check_version(file, entry)
    if size != entry["size"]:
        raise ObjectGone(entry["path"], "was cut while it was read")
    if last != b"\n":
        yield b"\n"


def _check_version(file: FileIO, entry: dict[str, Any]) -> None:
    if folders.version(os.fstat(file.fileno())) != entry["version"]:
        raise ObjectGone(entry["path"], "has changed since the run took it")


@dataclass(frozen=True, slots=True)
class _Place:
    """The folder of a run's source.

    `prefix`: the beginning of its objects' paths in a manifest. `name` and `param` name it in
    errors.
    """

    folder: Folder
    prefix: str
    name: str
    param: str


def _place(owner: Owner, source: Source, moment: Moment) -> _Place:
    """The folder of a source, with the links on its path resolved now.

    InvalidRequest if its path leaves its base.
    """
    if source.folder is not None:
        return _local(source.folder, moment)
    param = "source.prefix"
    steps = _steps(source.prefix or "", param, moment)
    own = _own(owner)
    home = own.base.joinpath(*own.below)
    found = Path(os.path.realpath(home.joinpath(*steps)))
    name = "/".join(steps)
    if not found.is_relative_to(home):
        raise InvalidRequest(
            f"{param}: {name[:QUOTED_CHARS]!r} is a link out of the account's own drop prefix. Put"
            " the objects themselves there.",
            param=param,
        )
    below = found.relative_to(home).parts
    prefix = "".join(f"{step}/" for step in below)
    return _Place(Folder(own.base, own.below + below), prefix, name, param)


def _local(folder: str, moment: Moment) -> _Place:
    """A `folder` below one of the drop roots. InvalidRequest if it is below none."""
    param = "source.folder"
    if not settings().drop_roots:
        raise InvalidRequest(
            f"{param}: this server allows no local folders. Its operator can, with"
            " XALEN_DROP_ROOTS; or use `prefix`.",
            param=param,
        )
    if not folder.startswith("/"):
        raise InvalidRequest(
            f"{param}: {folder[:QUOTED_CHARS]!r} is not absolute. Write the whole path, from"
            " `/` on.",
            param=param,
        )
    name = "/" + "/".join(_steps(folder.lstrip("/"), param, moment))
    found = Path(os.path.realpath(name))
    for root in _roots():
        if found.is_relative_to(root):
            return _Place(Folder(root, found.relative_to(root).parts), f"{found}/", name, param)
    raise InvalidRequest(
        f"{param}: {name[:QUOTED_CHARS]!r} is not below a drop root of this server. Ask its"
        " operator which there are, or use `prefix`.",
        param=param,
    )


def _own(owner: Owner) -> Folder:
    """An account's drop folder in the server's storage."""
    return Folder(
        Path(os.path.realpath(storage.folder())),
        ("drop", owner.account_id.hex, "live" if owner.livemode else "test"),
    )


def _share(source: Source) -> Path:
    """The unit that hangs as one: the drop root of a source's folder, or the server's storage."""
    if source.folder is None:
        return storage.folder()
    folder = Path(source.folder)
    for root in settings().drop_roots:
        if folder.is_relative_to(root):
            return root
    return folder


def _roots() -> list[Path]:
    return [Path(os.path.realpath(root)) for root in settings().drop_roots]


def _home(owner: Owner, source: Source, path: str) -> tuple[Folder, str]:
    """The base folder of a manifest's object, and the object's path below it."""
    if source.folder is None:
        return _own(owner), path
    for root in _roots():
        if Path(path).is_relative_to(root):
            return Folder(root, ()), Path(path).relative_to(root).as_posix()
    raise ObjectGone(path, "is not below a drop root any more")


def _steps(path: str, param: str, moment: Moment) -> list[str]:
    """The names on a relative path, its placeholders replaced.

    InvalidRequest for an empty or absolute path, and for one with `..`.
    """
    filled = _filled(path, param, moment)
    steps = [step for step in filled.split("/") if step]
    if filled.startswith("/") or not steps or {".", ".."} & set(steps):
        raise InvalidRequest(
            f"{param}: {filled[:QUOTED_CHARS]!r} is no path below a folder. Write names joined by"
            " `/`, without `..` and not from `/` on.",
            param=param,
        )
    return steps


def _filled(text: str, param: str, moment: Moment) -> str:
    """A name with its placeholders replaced.

    InvalidRequest if an unknown `{{` is left: in a name it can only be a mistake.
    """
    templates.check(text, param=param)
    filled = templates.fill(text, moment)
    if "{{" in filled:
        raise InvalidRequest(
            f"{param}: {text[:QUOTED_CHARS]!r} holds a placeholder that is none. Write one such as"
            f" {templates.EXAMPLES}.",
            param=param,
        )
    return filled


def _entry(place: _Place, found: Found) -> dict[str, Any]:
    """A file's entry in a manifest. InvalidRequest if its name is too long or not UTF-8."""
    path = place.prefix + found.path
    # Python decodes bytes that are not UTF-8 as lone surrogates (PEP 383).
    is_utf8 = not any("\ud800" <= char <= "\udfff" for char in path)
    if not is_utf8 or len(path.encode("utf-8")) > LONGEST_PATH:
        problem = f"longer than {LONGEST_PATH:,} bytes, or not UTF-8"
        raise InvalidRequest(
            f"the name {found.path[:QUOTED_CHARS]!r} is {problem}. Rename the object.",
            code="source_unreadable",
        )
    return {"path": path, "size": found.size, "version": found.version}


def _new(
    session: Session, schedule: Schedule, manifest: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The entries of a manifest that no run of the schedule has taken."""
    rows = session.execute(
        TAKEN, {"schedule_id": schedule.id, "paths": [entry["path"] for entry in manifest]}
    )
    taken = {(path, version) for path, version in rows}
    return [entry for entry in manifest if (entry["path"], entry["version"]) not in taken]


def _check_size(manifest: list[dict[str, Any]]) -> None:
    size, most = sum(entry["size"] for entry in manifest), settings().max_file_bytes
    if size > most:
        raise InvalidRequest(
            f"its {len(manifest):,} new objects have {size:,} bytes; the most of one batch is"
            f" {most:,}. Nothing of it was taken. Remove some of them until the next run.",
            code="source_too_large",
        )


@contextmanager
def _named(place: _Place) -> Iterator[None]:
    """Add the folder's name to errors about it."""
    shown = f"{place.param}: {place.name[:QUOTED_CHARS]!r}"
    try:
        yield
    except InvalidRequest as error:
        raise InvalidRequest(
            f"{shown}: {error.message}", param=place.param, code=error.code
        ) from None
    except PermissionError:
        message = f"{shown} cannot be read: permission denied. Allow it to the server's user."
        raise InvalidRequest(message, param=place.param, code="source_unreadable") from None
    except NotADirectoryError:
        message = f"{shown} is no folder. Name the folder, and its objects in `pattern`."
        raise InvalidRequest(message, param=place.param, code="source_unreadable") from None
