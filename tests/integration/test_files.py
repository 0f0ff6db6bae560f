"""The service of files: expiry, deletion with answers, and the batches that prevent both."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session

from tests import factories
from tests.integration.conftest import Api
from xalen_batch import db, files, ids, storage
from xalen_batch.accounts import accounts
from xalen_batch.accounts.accounts import Caller
from xalen_batch.api.schemas import FileObject
from xalen_batch.errors import FileBusy, InvalidRequest, NotFound
from xalen_batch.models import File, Result
from xalen_batch.models.files import FilePart
from xalen_batch.pipeline import recover
from xalen_batch.schedules import schedules


@pytest.fixture
def caller(session: Session) -> Caller:
    return factories.caller(session)


def make(session: Session, caller: Caller, **options: object) -> File:
    given = {
        "id": ids.new(),
        "purpose": "batch",
        "filename": "a.jsonl",
        "size": 3,
        "sha256": b"0" * 32,
        **options,
    }
    return files.create(session, caller, **given)  # type: ignore[arg-type]


def public(file: File) -> str:
    return ids.render("file", file.id)


def test_a_batch_input_expires_by_default_and_others_do_not(
    session: Session, caller: Caller
) -> None:
    default = make(session, caller)
    assert default.expires_at == default.created_at + timedelta(days=30)
    assert make(session, caller, purpose="vision").expires_at is None
    short = make(session, caller, expires_after=3600)
    assert short.expires_at == short.created_at + timedelta(hours=1)


def test_an_expired_file_is_gone_before_the_sweep(session: Session, caller: Caller) -> None:
    file = factories.input_file(
        session, caller, b"{}", expires_at=datetime.now(UTC) - timedelta(seconds=1)
    )
    with pytest.raises(NotFound):
        files.get(session, caller, public(file))


def test_deleting_an_upload_removes_its_bytes(session: Session, caller: Caller) -> None:
    file = factories.input_file(session, caller, b"{}")
    files.delete(session, caller, public(file))
    with pytest.raises(FileNotFoundError):
        list(storage.chunks(storage.key(file.id)))
    with pytest.raises(NotFound):
        files.delete(session, caller, public(file))


def test_the_input_of_an_open_batch_stays(session: Session, caller: Caller) -> None:
    file = factories.input_file(session, caller, b"{}")
    batch = factories.batch(session, caller, file)
    with pytest.raises(InvalidRequest, match=ids.render("batch", batch.id)):
        files.delete(session, caller, public(file))
    session.execute(text("UPDATE batches SET status = 'failed'"))
    files.delete(session, caller, public(file))


@pytest.mark.parametrize("status", ["cancelling", "finalizing"])
def test_the_input_of_a_batch_that_is_about_to_end_is_free_moments_later(
    session: Session, caller: Caller, status: str
) -> None:
    file = factories.input_file(session, caller, b"{}")
    ending = factories.batch(session, caller, file, status=status)
    running = factories.batch(session, caller, file)
    with pytest.raises(InvalidRequest, match=ids.render("batch", running.id)):
        files.delete(session, caller, public(file))
    running.status = "failed"
    session.flush()
    with pytest.raises(
        FileBusy, match=f"{ids.render('batch', ending.id)}, which is {status}"
    ) as refused:
        files.delete(session, caller, public(file))
    assert refused.value.retry_after
    ending.status = "cancelled"
    session.flush()
    files.delete(session, caller, public(file))


class TestOfASchedule:
    def test_its_file_neither_goes_nor_expires_until_it_is_deleted(
        self, session: Session, caller: Caller
    ) -> None:
        file = factories.input_file(session, caller, [factories.chat_line("a")])
        schedule = factories.schedule(
            session, caller, name="night shift", template_file_id=public(file)
        )
        with pytest.raises(
            InvalidRequest, match=rf"{ids.render('sched', schedule.id)} \('night shift'\)"
        ) as refused:
            files.delete(session, caller, public(file))
        assert (refused.value.code, refused.value.param) == ("file_in_use", "file_id")
        file.expires_at = datetime.now(UTC) - timedelta(days=1)
        session.flush()
        session.commit()
        recover.tick()
        assert files.get(session, caller, public(file)).deleted_at is None
        schedules.delete(session, caller, ids.render("sched", schedule.id), discard_requests=False)
        with pytest.raises(NotFound):
            files.get(session, caller, public(file))
        session.commit()
        recover.tick()
        session.refresh(file)
        assert file.deleted_at is not None

    def test_a_file_is_not_deleted_under_a_schedule_that_is_being_made(self, database: str) -> None:
        with db.transaction() as session:
            caller = factories.caller(session)
            file = factories.input_file(session, caller, [factories.chat_line("a")])

        def delete() -> None:
            with db.transaction() as session:
                files.delete(session, caller, public(file))

        with ThreadPoolExecutor(1) as pool:
            with db.transaction() as session:
                factories.schedule(session, caller, input_file_id=public(file))
                deleting = pool.submit(delete)
                while not session.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")):
                    assert not deleting.done()
            with pytest.raises(InvalidRequest, match="is what schedule"):
                deleting.result(10)

    def test_a_file_that_a_schedule_no_longer_reads_may_go(
        self, session: Session, caller: Caller
    ) -> None:
        old, new = (
            factories.input_file(session, caller, [factories.chat_line("a")]) for _ in range(2)
        )
        schedule = factories.schedule(session, caller, input_file_id=public(old))
        schedules.change(session, caller, schedule, factories.definition(input_file_id=public(new)))
        files.delete(session, caller, public(old))
        with pytest.raises(InvalidRequest):
            files.delete(session, caller, public(new))

    @pytest.mark.parametrize(
        ("status", "told"),
        [("validating", "when its batch is in_progress"), ("cancelled", "never will be")],
    )
    def test_the_input_of_a_run_has_no_content_before_it_is_put_together(
        self, session: Session, caller: Caller, status: str, told: str
    ) -> None:
        file = make(session, caller, size=0, sha256=None)
        factories.batch(session, caller, file, status=status)
        shown = FileObject.of(files.get(session, caller, public(file)))
        assert (shown.status, shown.bytes) == ("uploaded", 0)
        with pytest.raises(InvalidRequest, match=told) as refused:
            files.refuse_if_not_ready(session, file, param="file_id")
        assert refused.value.code == "file_not_ready"

    def test_the_api_tells_that_there_is_no_content_yet(self, api: Api) -> None:
        with db.transaction() as session:
            file = make(session, accounts.authenticate(session, api.key), size=0, sha256=None)
        answer = api.ask("GET", f"/v1/files/{public(file)}/content")
        assert (answer.status, answer.error["code"]) == (400, "file_not_ready")
        assert api.ask("GET", f"/v1/files/{public(file)}").json["status"] == "uploaded"
        assert api.ask("GET", f"/v1/files/{api.upload()['id']}").json["status"] == "processed"
        estimate = api.ask("POST", "/v1/batches/estimate", {"input_file_id": public(file)})
        assert (estimate.status, estimate.error["code"]) == (400, "file_not_ready")


@pytest.mark.parametrize(("part", "erased"), [(FilePart.OUTPUT, [1]), (FilePart.ERROR, [2])])
def test_deleting_an_output_file_erases_answers_and_never_money(
    session: Session, caller: Caller, part: FilePart, erased: list[int]
) -> None:
    batch = factories.batch(
        session, caller, factories.input_file(session, caller, b"{}"), status="completed"
    )
    common = {"batch_id": batch.id, "model": "m", "custom_id": "c", "error_code": None}
    session.execute(
        insert(Result),
        [
            {**common, "line_no": 1, "status_code": 200, "amount": 1, "body": b"{}"},
            {**common, "line_no": 2, "status_code": 400, "amount": None, "body": b"{}"},
            {
                **common,
                "line_no": 3,
                "status_code": None,
                "amount": None,
                "body": None,
                "error_code": "batch_expired",
            },
        ],
    )
    output = File(
        id=ids.new(),
        account_id=caller.account_id,
        livemode=False,
        purpose="batch_output",
        filename="o",
        size=1,
        batch_id=batch.id,
        part=part,
    )
    session.add(output)
    session.flush()
    files.delete(session, caller, public(output))
    rows = session.execute(
        select(Result.line_no, Result.body, Result.amount).order_by(Result.line_no)
    ).all()
    assert [row.line_no for row in rows if row.body is None] == sorted([*erased, 3])
    assert rows[0].amount == 1


def test_pages_are_by_creation_and_by_purpose(session: Session, caller: Caller) -> None:
    made = [make(session, caller, purpose=purpose) for purpose in ("batch", "vision", "batch")]
    page = files.page(session, caller, purpose=None, limit=2, order="asc", after=None)
    assert (page.data, page.has_more) == (made[:2], True)
    page = files.page(session, caller, purpose=None, limit=2, order="asc", after=public(made[1]))
    assert (page.data, page.has_more) == (made[2:], False)
    assert files.page(session, caller, purpose="batch", limit=9, order="desc", after=None).data == [
        made[2],
        made[0],
    ]
    assert (
        files.page(
            session, factories.caller(session), purpose=None, limit=9, order="desc", after=None
        ).data
        == []
    )
