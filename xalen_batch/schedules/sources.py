"""Sources: objects that others have put into a folder by the time a schedule fires, each taken by
one run.

A `prefix` is below the account's own part of the server's storage, `drop/<account id
hex>/<test|live>/`; a `folder` is below one of the drop roots that the operator allows, whose
contents are for every account.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
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
# Any moment: how the path of a source may be written does not depend on it.
SOME_MOMENT = Moment(datetime(2026, 1, 31, tzinfo=UTC), ZoneInfo("UTC"), "run_0")
# What the index over consumed objects has room for, in bytes.
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
    """The marker is not there."""


class Gone(Exception):
    """An object of a manifest is gone or is not what it was."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path[:QUOTED_CHARS]!r} {problem}")
        self.path = path
        self.problem = problem


def check(owner: Owner, source: Source) -> None:
    """InvalidRequest for a source that could never be read: a path that leads out of where it may
    lie, a wrong placeholder. Unavailable.
    """
    try:
        timeout.look(_share(source), lambda: _place(owner, source, SOME_MOMENT))
    except TimeoutError:
        raise Unavailable(
            "The place of this source does not answer right now. Send the request again in a few"
            " seconds."
        ) from None
    _filled(source.pattern, "source.pattern", SOME_MOMENT)
    if source.ready_marker is not None:
        _steps(source.ready_marker, "source.ready_marker", SOME_MOMENT)


def location(owner: Owner, source: Source) -> str:
    """Where its objects are to be put: a path on the server, or one below its storage folder."""
    return source.folder or "/".join((*_own(owner).below, source.prefix or ""))


def find(
    session: Session, schedule: Schedule, source: Source, moment: Moment
) -> list[dict[str, Any]]:
    """The objects that a run is to read, {path, size, version}, sorted by path: those that match
    and that no run has taken.

    NotReady without the marker; InvalidRequest if they cannot be read, or are too many or too large
    for one batch; storage.UNAVAILABLE.
    """
    owner = Owner(schedule.account_id, schedule.livemode)
    pattern = _filled(source.pattern, "source.pattern", moment)
    marker = source.ready_marker and "/".join(
        _steps(source.ready_marker, "source.ready_marker", moment)
    )
    place, files = timeout.look(_share(source), lambda: _listed(owner, source, moment, marker))
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
    # Nothing is missing in a store that is away.
    confirm(source)
    place = _place(owner, source, moment)
    with _named(place):
        if marker and not place.folder.has(marker):
            raise NotReady(
                f"There is no {marker[:QUOTED_CHARS]!r} in {place.name[:QUOTED_CHARS]!r} yet."
            )
        return place, place.folder.files()


def confirm(source: Source) -> None:
    """Raise marks.Elsewhere if a source lies in the store and the store is away."""
    if source.folder is None:
        marks.confirm()


def take(
    session: Session, schedule: Schedule, run: ScheduleRun, manifest: Sequence[dict[str, Any]]
) -> None:
    """Pin what a run reads.

    No later run finds these versions of the objects, unless its source repeats.
    """
    run.manifest = list(manifest)
    session.flush()
    paths, versions = ([entry[name] for entry in manifest] for name in ("path", "version"))
    session.execute(
        TAKE, {"schedule_id": schedule.id, "run_id": run.id, "paths": paths, "versions": versions}
    )


def chunks(owner: Owner, source: Source, manifest: Sequence[dict[str, Any]]) -> Iterator[bytes]:
    """The objects one after another, each without a byte order mark and with a newline at its end.

    Gone, at once or after some of its bytes, for one that is not as it was pinned. storage.UNAVAILABLE.
    """
    share = _share(source)
    for entry in manifest:
        read = _read(owner, source, entry)
        try:
            while (chunk := timeout.look(share, lambda read=read: next(read, None))) is not None:  # type: ignore[misc]
                yield chunk
        except PermissionError:
            raise Gone(entry["path"], "cannot be read: permission denied") from None
        except OSError as error:
            if error.errno not in folders.NOT_THERE:
                raise
            raise Gone(entry["path"], "is gone") from None


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
        raise Gone(entry["path"], "was cut while it was read")
    if last != b"\n":
        yield b"\n"


def _check_version(file: FileIO, entry: dict[str, Any]) -> None:
    if folders.version(os.fstat(file.fileno())) != entry["version"]:
        raise Gone(entry["path"], "has changed since the run took it")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a run's source lies. `prefix`: what its objects' paths begin with in a manifest."""

    folder: Folder
    prefix: str
    name: str
    param: str


def _place(owner: Owner, source: Source, moment: Moment) -> _Place:
    """Resolves the links on its way as of now.

    InvalidRequest if it leads out of where it may lie.
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
    return _Place(
        Folder(own.base, own.below + below), "".join(f"{step}/" for step in below), name, param
    )


def _local(folder: str, moment: Moment) -> _Place:
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
        f"{param}: {name[:QUOTED_CHARS]!r} is not below a drop root of this server. Ask its operator"
        " which there are, or use `prefix`.",
        param=param,
    )


def _own(owner: Owner) -> Folder:
    """What an account has of the server's storage for others to put objects into."""
    return Folder(
        Path(os.path.realpath(storage.folder())),
        ("drop", owner.account_id.hex, "live" if owner.livemode else "test"),
    )


def _share(source: Source) -> Path:
    """What hangs together with a source: the drop root that its folder is written below, or the
    server's storage.
    """
    if source.folder is None:
        return storage.folder()
    return next(
        (root for root in settings().drop_roots if Path(source.folder).is_relative_to(root)),
        Path(source.folder),
    )


def _roots() -> list[Path]:
    return [Path(os.path.realpath(root)) for root in settings().drop_roots]


def _home(owner: Owner, source: Source, path: str) -> tuple[Folder, str]:
    """The folder that an object of a manifest must not lead out of, and its path in it."""
    if source.folder is None:
        return _own(owner), path
    for root in _roots():
        if Path(path).is_relative_to(root):
            return Folder(root, ()), Path(path).relative_to(root).as_posix()
    raise Gone(path, "is not below a drop root any more")


def _steps(path: str, param: str, moment: Moment) -> list[str]:
    """The names on a relative path, its placeholders replaced.

    InvalidRequest for one that is absolute or goes up.
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

    InvalidRequest for any other: in a name it could only be a mistake.
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
    path = place.prefix + found.path
    # A name that is not UTF-8 comes with its bytes as lone surrogates.
    if len(path.encode("utf-8", "surrogateescape")) > LONGEST_PATH or any(
        "\ud800" <= char <= "\udfff" for char in path
    ):
        problem = f"longer than {LONGEST_PATH:,} bytes, or not UTF-8"
        raise InvalidRequest(
            f"the name {found.path[:QUOTED_CHARS]!r} is {problem}. Rename the object.",
            code="source_unreadable",
        )
    return {"path": path, "size": found.size, "version": found.version}


def _new(
    session: Session, schedule: Schedule, manifest: list[dict[str, Any]]
) -> list[dict[str, Any]]:
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
    """What is wrong with a folder, with its name."""
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
