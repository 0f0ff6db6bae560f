"""Sources: the files found in a folder, those that a run takes, and no path out of the folders that
an account may read.
"""

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tests import factories
from xalen_batch import ids, storage
from xalen_batch.accounts.accounts import Caller, Owner
from xalen_batch.errors import InvalidRequest
from xalen_batch.models import ConsumedObject, Schedule, ScheduleRun
from xalen_batch.schedules import folders, runs, sources
from xalen_batch.schedules.definition import Source
from xalen_batch.schedules.runs import Trigger
from xalen_batch.schedules.sources import NotReady, ObjectGone
from xalen_batch.schedules.templates import Moment
from xalen_batch.states import RunState

# 02:30 in Berlin.
NIGHT = Moment(datetime(2026, 11, 25, 1, 30, tzinfo=UTC), ZoneInfo("Europe/Berlin"), "run_0")


@pytest.fixture
def caller(session: Session) -> Caller:
    return factories.caller(session)


@pytest.fixture
def roots(configure: Callable[..., None], tmp_path: Path) -> Path:
    """A drop root, the only one."""
    (tmp_path / "drops").mkdir()
    configure(drop_roots=tmp_path / "drops")
    return tmp_path / "drops"


def home(owner: Owner) -> Path:
    """Where an account's objects are put."""
    place = (
        storage.folder() / "drop" / owner.account_id.hex / ("live" if owner.livemode else "test")
    )
    place.mkdir(parents=True, exist_ok=True)
    return place


def put(folder: Path, name: str, content: bytes = b"{}\n", *, age: int = 0) -> Path:
    """A file, written some seconds ago."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    written = 1_790_000_000_000_000_000 - age * 10**9
    os.utime(path, ns=(written, written))
    return path


def made(session: Session, owner: Owner, **source: Any) -> tuple[Schedule, Source]:
    schedule = factories.schedule(session, owner, source=source)
    return schedule, Source.model_validate(source)


def begin(session: Session, schedule: Schedule, day: int = 25) -> ScheduleRun:
    columns = runs.blank(
        schedule, datetime(2026, 11, day, 1, 30, tzinfo=UTC), Trigger.SCHEDULE, RunState.WAITING
    )
    run = ScheduleRun(**columns)
    session.add(run)
    session.flush()
    return run


def found(
    session: Session, schedule: Schedule, source: Source, moment: Moment = NIGHT
) -> list[str]:
    return [entry["path"] for entry in sources.find(session, schedule, source, moment)]


def read(owner: Owner, source: Source, manifest: list[dict[str, Any]]) -> bytes:
    return b"".join(sources.chunks(owner, source, manifest))


def test_objects_are_found_by_pattern_in_the_order_of_their_paths(
    session: Session, caller: Caller
) -> None:
    place = home(caller) / "exports"
    for name in (
        "b.jsonl",
        "a.jsonl",
        "deep/er/c.jsonl",
        "B.jsonl",
        "note.txt",
        ".hidden.jsonl",
        ".git/x.jsonl",
        "half.jsonl.tmp",
        "x.part",
    ):
        put(place, name)
    put(place, "unfinished.tmp/y.jsonl")
    schedule, source = made(session, caller, prefix="exports/")
    assert found(session, schedule, source) == [
        f"exports/{name}" for name in ("B.jsonl", "a.jsonl", "b.jsonl", "deep/er/c.jsonl")
    ]
    assert found(session, schedule, source.model_copy(update={"pattern": "deep/*"})) == [
        "exports/deep/er/c.jsonl"
    ]
    assert found(session, schedule, source.model_copy(update={"pattern": "*.txt"})) == [
        "exports/note.txt"
    ]
    everything = found(session, schedule, source.model_copy(update={"pattern": "*"}))
    assert [path for path in everything if re.search(r"tmp|part|/\.", path)] == []


def test_placeholders_lead_to_the_folder_and_the_names_of_the_night(
    session: Session, caller: Caller
) -> None:
    for day in (24, 25):
        put(home(caller) / f"exports/2026/11/{day}", f"orders-202611{day}-1.jsonl")
        put(home(caller) / f"exports/2026/11/{day}", "other.jsonl")
    schedule, source = made(
        session,
        caller,
        prefix="exports/{{scheduled_date-1d:%Y/%m/%d}}",
        pattern="orders-{{scheduled_date-1d:%Y%m%d}}-*.jsonl",
    )
    assert found(session, schedule, source) == ["exports/2026/11/24/orders-20261124-1.jsonl"]


def test_an_object_is_taken_once_until_it_is_written_again(
    session: Session, caller: Caller
) -> None:
    place = home(caller) / "in"
    put(place, "a.jsonl", age=5)
    put(place, "b.jsonl")
    schedule, source = made(session, caller, prefix="in")
    run = begin(session, schedule)
    manifest = sources.find(session, schedule, source, NIGHT)
    sources.take(session, schedule, run, manifest)
    session.refresh(run)
    assert run.manifest == manifest
    assert [entry["path"] for entry in manifest] == ["in/a.jsonl", "in/b.jsonl"]
    assert sources.find(session, schedule, source, NIGHT) == []
    put(place, "a.jsonl")
    put(place, "c.jsonl")
    assert found(session, schedule, source) == ["in/a.jsonl", "in/c.jsonl"]
    # Files that one schedule has taken are new to another.
    other, _ = made(session, caller, prefix="in")
    assert len(found(session, other, source)) == 3


def test_a_source_that_repeats_takes_all_again(session: Session, caller: Caller) -> None:
    put(home(caller) / "in", "a.jsonl")
    schedule, source = made(session, caller, prefix="in", repeat=True)
    for day in (25, 26):
        manifest = sources.find(session, schedule, source, NIGHT)
        sources.take(session, schedule, begin(session, schedule, day), manifest)
        assert [entry["path"] for entry in manifest] == ["in/a.jsonl"]
    assert session.scalar(select(func.count()).select_from(ConsumedObject)) == 1


def test_a_folder_that_is_not_there_yet_holds_nothing(session: Session, caller: Caller) -> None:
    schedule, source = made(session, caller, prefix="never/made")
    assert found(session, schedule, source) == []


def test_a_run_waits_for_the_marker_which_is_never_taken(session: Session, caller: Caller) -> None:
    place = home(caller) / "in"
    put(place, "a.jsonl")
    schedule, source = made(
        session, caller, prefix="in", pattern="*", ready_marker="ready-{{scheduled_date}}"
    )
    with pytest.raises(NotReady, match=r"ready-2026-11-25.*'in'"):
        sources.find(session, schedule, source, NIGHT)
    (place / "ready-2026-11-25").symlink_to("a.jsonl")
    with pytest.raises(NotReady):
        sources.find(session, schedule, source, NIGHT)
    (place / "ready-2026-11-25").unlink()
    put(place, "ready-2026-11-25", b"")
    assert found(session, schedule, source) == ["in/a.jsonl"]


def test_what_is_read_is_one_object_after_another_as_lines(
    session: Session, caller: Caller
) -> None:
    place = home(caller) / "in"
    put(place, "a.jsonl", b"\xef\xbb\xbf1\n2")
    put(place, "b.jsonl", b"")
    put(place, "c.jsonl", b"3\r\n\n")
    put(place, "d.jsonl", b"\xef\xbb\xbf")
    put(place, "e.jsonl", b"4" * (3 * storage.READ_CHUNK) + b"\xef\xbb\xbf")
    schedule, source = made(session, caller, prefix="in")
    content = read(caller, source, sources.find(session, schedule, source, NIGHT))
    assert (
        content.replace(b"4" * (3 * storage.READ_CHUNK), b"4") == b"1\n2\n3\r\n\n\n4\xef\xbb\xbf\n"
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda path: path.unlink(), "is gone"),
        (lambda path: path.write_bytes(b"[]\n"), "has changed"),
        (lambda path: put(path.parent, path.name, b"{}\n{}\n"), "has changed"),
        (lambda path: (path.unlink(), path.symlink_to("a.jsonl")), "is gone"),
        (lambda path: (path.unlink(), path.mkdir()), "is gone"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is gone"),
        (
            lambda path: (
                path.parent.rename(path.parent.with_name("moved")),
                path.parent.symlink_to("moved"),
            ),
            "is gone",
        ),
        (
            lambda path: (
                path.parent.rename(path.parent.with_name("moved")),
                put(path.parent.parent, path.parent.name),
            ),
            "is gone",
        ),
    ],
)
def test_an_object_that_is_not_what_was_pinned_is_gone(
    session: Session, caller: Caller, change: Callable[[Path], Any], told: str
) -> None:
    place = home(caller) / "in"
    put(place, "a.jsonl")
    path = put(place, "b.jsonl")
    schedule, source = made(session, caller, prefix="in")
    manifest = sources.find(session, schedule, source, NIGHT)
    change(path)
    with pytest.raises(ObjectGone, match=rf"in/[ab]\.jsonl' {told}"):
        read(caller, source, manifest)


def test_an_object_that_is_written_while_it_is_read_is_gone(
    session: Session, caller: Caller
) -> None:
    path = put(home(caller) / "in", "a.jsonl", b"1" * (2 * storage.READ_CHUNK))
    schedule, source = made(session, caller, prefix="in")
    chunks = sources.chunks(caller, source, sources.find(session, schedule, source, NIGHT))
    assert len(next(chunks)) == storage.READ_CHUNK
    with path.open("r+b") as file:
        file.write(b"2")
    with pytest.raises(ObjectGone, match="has changed"):
        b"".join(chunks)


class TestNothingLeadsOut:
    @pytest.mark.parametrize(
        "prefix",
        [
            "/etc",
            "..",
            "../live",
            "in/../../live",
            "in/{{scheduled_date:../%Y}}",
            "{{scheduled_date:/%Y}}",
            ".",
            "in/./a",
            "/",
            "//",
            "in/..",
        ],
    )
    @pytest.mark.parametrize("field", ["prefix", "ready_marker"])
    def test_a_path_is_relative_and_never_goes_up(
        self, session: Session, caller: Caller, field: str, prefix: str
    ) -> None:
        source = Source.model_validate({"prefix": "in", field: prefix})
        with pytest.raises(InvalidRequest, match=r"without `\.\.`") as refused:
            sources.check(caller, source)
        assert refused.value.param == f"source.{field}"
        schedule = factories.schedule(session, caller)
        with pytest.raises(InvalidRequest):
            sources.find(session, schedule, source, NIGHT)

    def test_an_account_sees_its_own_objects_in_its_own_mode_alone(self, session: Session) -> None:
        account = factories.account(session)
        owners = [
            factories.caller(session, account),
            factories.caller(session, account, livemode=True),
            factories.caller(session),
        ]
        for number, owner in enumerate(owners):
            put(home(owner) / "in", f"{number}.jsonl", b"%d\n" % number)
        for number, owner in enumerate(owners):
            schedule, source = made(session, owner, prefix="in")
            manifest = sources.find(session, schedule, source, NIGHT)
            assert [entry["path"] for entry in manifest] == [f"in/{number}.jsonl"]
            assert read(owner, source, manifest) == b"%d\n" % number

    def test_links_to_files_and_folders_are_not_followed(
        self, session: Session, caller: Caller, tmp_path: Path
    ) -> None:
        other = factories.caller(session)
        put(home(other), "secret.jsonl")
        put(tmp_path, "secret.jsonl")
        place = home(caller) / "in"
        put(place, "own.jsonl")
        (place / "file.jsonl").symlink_to(home(other) / "secret.jsonl")
        (place / "folder").symlink_to(home(other))
        (place / "out").symlink_to(tmp_path)
        (place / "loop").symlink_to(place)
        schedule, source = made(session, caller, prefix="in", pattern="*")
        assert found(session, schedule, source) == ["in/own.jsonl"]

    @pytest.mark.parametrize("above", ["in", "in/deep"])
    def test_a_prefix_that_is_a_link_out_is_refused_when_it_is_made_and_when_it_fires(
        self, session: Session, caller: Caller, above: str
    ) -> None:
        other = factories.caller(session)
        put(home(other) / "deep", "secret.jsonl")
        schedule, source = made(session, caller, prefix="in/deep")
        link = home(caller) / above
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(home(other) / "deep")
        for look in (
            lambda: sources.check(caller, source),
            lambda: sources.find(session, schedule, source, NIGHT),
        ):
            with pytest.raises(InvalidRequest, match="link out"):
                look()

    def test_a_link_in_the_place_of_a_mode_or_an_account_leads_nowhere(
        self, session: Session, caller: Caller
    ) -> None:
        other = factories.caller(session)
        put(home(other) / "in", "secret.jsonl")
        schedule, source = made(session, caller, prefix="in")
        home(caller).rmdir()
        (storage.folder() / "drop" / caller.account_id.hex / "test").symlink_to(home(other))
        with pytest.raises(InvalidRequest, match="link out"):
            sources.find(session, schedule, source, NIGHT)

    def test_a_folder_that_becomes_a_link_between_two_looks_is_not_followed(
        self, session: Session, caller: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = factories.caller(session)
        put(home(other) / "in", "secret.jsonl")
        put(home(caller) / "in", "own.jsonl")
        schedule, source = made(session, caller, prefix="in")
        resolve = os.path.realpath

        def swapped(path: Any, **options: Any) -> str:
            found = resolve(path, **options)
            if str(path).endswith("/in"):
                Path(path).rename(Path(path).with_name("was"))
                Path(path).symlink_to(home(other) / "in")
            return found

        monkeypatch.setattr(os.path, "realpath", swapped)
        with pytest.raises((InvalidRequest, OSError)) as refused:
            sources.find(session, schedule, source, NIGHT)
        assert "secret" not in str(refused.value)

    def test_a_manifest_reads_no_other_account_whatever_its_folders_become(
        self, session: Session, caller: Caller
    ) -> None:
        other = factories.caller(session)
        secret = put(home(other) / "in", "a.jsonl", b"secret\n")
        own = put(home(caller) / "in", "a.jsonl", b"public\n")
        schedule, source = made(session, caller, prefix="in")
        manifest = sources.find(session, schedule, source, NIGHT)
        assert folders.version(secret.stat()) == folders.version(own.stat())
        own.parent.rename(own.parent.with_name("was"))
        own.parent.symlink_to(secret.parent)
        with pytest.raises(ObjectGone):
            read(caller, source, manifest)


class TestLocalFolders:
    def test_none_is_allowed_unless_the_operator_says_so(
        self, caller: Caller, tmp_path: Path
    ) -> None:
        with pytest.raises(InvalidRequest, match="XALEN_DROP_ROOTS"):
            sources.check(caller, Source.model_validate({"folder": str(tmp_path)}))

    def test_one_below_a_root_is_read_by_every_account(
        self, session: Session, caller: Caller, roots: Path
    ) -> None:
        put(roots / "2026-11-24", "a.jsonl", b"1")
        put(roots / "2026-11-25", "b.jsonl", b"2")
        for owner in (caller, factories.caller(session)):
            schedule, source = made(session, owner, folder=f"{roots}/{{{{scheduled_date}}}}")
            manifest = sources.find(session, schedule, source, NIGHT)
            assert [entry["path"] for entry in manifest] == [
                f"{roots.resolve()}/2026-11-25/b.jsonl"
            ]
            assert read(owner, source, manifest) == b"2\n"

    @pytest.mark.parametrize(
        "folder",
        [
            "/etc",
            "{roots}/..",
            "{roots}/../x",
            "{roots}x",
            "{roots}/out",
            "{roots}/{{{{scheduled_date:../%Y}}}}",
            "x",
        ],
    )
    def test_one_outside_of_them_is_refused(
        self, session: Session, caller: Caller, roots: Path, folder: str
    ) -> None:
        (roots / "out").symlink_to("/etc")
        source = Source.model_validate({"folder": folder.format(roots=roots)})
        schedule = factories.schedule(session, caller)
        for look in (
            lambda: sources.check(caller, source),
            lambda: sources.find(session, schedule, source, NIGHT),
        ):
            with pytest.raises(InvalidRequest) as refused:
                look()
            assert refused.value.param == "source.folder"

    def test_a_link_within_a_root_is_followed_to_what_it_is_when_it_fires(
        self, session: Session, caller: Caller, roots: Path
    ) -> None:
        put(roots / "monday", "a.jsonl")
        put(roots / "tuesday", "a.jsonl", b"[]\n")
        (roots / "latest").symlink_to("monday")
        schedule, source = made(session, caller, folder=f"{roots}/latest")
        manifest = sources.find(session, schedule, source, NIGHT)
        sources.take(session, schedule, begin(session, schedule), manifest)
        (roots / "latest").unlink()
        (roots / "latest").symlink_to("tuesday")
        assert found(session, schedule, source) == [f"{roots.resolve()}/tuesday/a.jsonl"]
        assert read(caller, source, manifest) == b"{}\n"

    def test_a_root_that_is_not_mounted_is_storage_away_and_nothing_gone(
        self, session: Session, caller: Caller, roots: Path
    ) -> None:
        put(roots, "a.jsonl")
        schedule, source = made(session, caller, folder=str(roots))
        manifest = sources.find(session, schedule, source, NIGHT)
        roots.rename(roots.with_name("unmounted"))
        with pytest.raises(storage.UNAVAILABLE):
            sources.find(session, schedule, source, NIGHT)
        with pytest.raises(storage.UNAVAILABLE):
            read(caller, source, manifest)

    def test_one_that_is_allowed_no_more_is_not_read(
        self,
        session: Session,
        caller: Caller,
        roots: Path,
        configure: Callable[..., None],
        tmp_path: Path,
    ) -> None:
        put(roots, "a.jsonl")
        schedule, source = made(session, caller, folder=str(roots))
        manifest = sources.find(session, schedule, source, NIGHT)
        configure(drop_roots=tmp_path / "other")
        with pytest.raises(InvalidRequest, match="not below a drop root"):
            sources.find(session, schedule, source, NIGHT)
        with pytest.raises(ObjectGone, match="not below a drop root any more"):
            read(caller, source, manifest)


class TestLimits:
    def test_a_folder_with_too_many_names_is_refused_with_the_remedy(
        self, session: Session, caller: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(folders, "MOST_NAMES", 3)
        for number in range(3):
            put(home(caller) / "in", f"deep/{number}.txt")
        schedule, source = made(session, caller, prefix="in")
        with pytest.raises(
            InvalidRequest, match=r"source.prefix: 'in': .*more than 3 names.*{{scheduled_date}}"
        ) as refused:
            sources.find(session, schedule, source, NIGHT)
        assert refused.value.code == "source_too_large"

    def test_folders_end_somewhere(self, session: Session, caller: Caller) -> None:
        put(home(caller) / "in", "a/" * folders.DEEPEST + "x.jsonl")
        schedule, source = made(session, caller, prefix="in")
        with pytest.raises(InvalidRequest, match="deep"):
            sources.find(session, schedule, source, NIGHT)

    def test_more_than_one_batch_can_have_is_left_where_it_is(
        self, session: Session, caller: Caller, configure: Callable[..., None]
    ) -> None:
        configure(max_file_bytes=5)
        put(home(caller) / "in", "a.jsonl")
        put(home(caller) / "in", "b.jsonl")
        schedule, source = made(session, caller, prefix="in")
        with pytest.raises(
            InvalidRequest, match=r"6 bytes; the most of one batch is 5\. Nothing of it was taken"
        ):
            sources.find(session, schedule, source, NIGHT)

    def test_names_that_no_column_can_hold_are_refused(
        self, session: Session, caller: Caller
    ) -> None:
        place = home(caller) / "in"
        place.mkdir()
        (Path(os.fsdecode(os.fsencode(place) + b"/\xff.txt"))).write_bytes(b"")
        schedule, source = made(session, caller, prefix="in")
        assert found(session, schedule, source) == []
        with pytest.raises(InvalidRequest, match=r"not UTF-8\. Rename"):
            found(session, schedule, source.model_copy(update={"pattern": "*"}))
        long = "/".join(["x" * 240] * 5)
        put(place, f"{long}.jsonl")
        with pytest.raises(InvalidRequest, match=r"longer than 1,024 bytes"):
            found(session, schedule, source)

    def test_what_may_not_be_read_is_told_and_not_tried_for_ever(
        self, session: Session, caller: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(home(caller) / "in", "a.jsonl")
        schedule, source = made(session, caller, prefix="in")
        manifest = sources.find(session, schedule, source, NIGHT)
        opened = os.open

        def denied(path: Any, flags: int, **options: Any) -> int:
            if path == denied_name:
                raise PermissionError(13, "Permission denied", path)
            return opened(path, flags, **options)

        monkeypatch.setattr(os, "open", denied)
        denied_name = "in"
        with pytest.raises(InvalidRequest, match=r"permission denied\. Allow it"):
            sources.find(session, schedule, source, NIGHT)
        denied_name = "a.jsonl"
        with pytest.raises(ObjectGone, match="permission denied"):
            read(caller, source, manifest)

    def test_a_prefix_that_is_a_file_is_told_so(self, session: Session, caller: Caller) -> None:
        put(home(caller), "a.jsonl")
        schedule, source = made(session, caller, prefix="a.jsonl")
        with pytest.raises(InvalidRequest, match="is no folder"):
            sources.find(session, schedule, source, NIGHT)

    def test_ten_thousand_objects_are_taken_and_known(
        self, session: Session, caller: Caller
    ) -> None:
        place = home(caller) / "in"
        place.mkdir()
        for number in range(folders.MOST_NAMES):
            (place / f"{number}.jsonl").touch()
        schedule, source = made(session, caller, prefix="in")
        manifest = sources.find(session, schedule, source, NIGHT)
        sources.take(session, schedule, begin(session, schedule), manifest)
        assert len(manifest) == folders.MOST_NAMES
        assert sources.find(session, schedule, source, NIGHT) == []


def test_ids_of_accounts_are_what_folders_are_called(caller: Caller) -> None:
    assert home(caller).parent.name == ids.render("acct", caller.account_id).removeprefix("acct_")
