"""The neighbour, an account with objects of every kind, and the callers that must not see them."""

import http.client
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import obstore
from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session

from tests import billing, factories
from tests.conftest import as_owner
from tests.integration import isolation
from tests.integration.isolation import IDEMPOTENCY_KEY, OTHER_PARAMETERS, Actor, Kind, Request
from tests.waiting import PATIENCE
from xalen_batch import db, ids, storage, uploads
from xalen_batch.accounts import accounts, keys
from xalen_batch.accounts.accounts import Caller, Owner, Scope
from xalen_batch.billing import credit_notes
from xalen_batch.endpoints.names import RESPONSES
from xalen_batch.endpoints.usage import Usage
from xalen_batch.models import AccountTally, Base, Batch, File, IdempotencyKey, Result
from xalen_batch.models.files import FilePart
from xalen_batch.results import results
from xalen_batch.schedules import manual
from xalen_batch.schedules.collect import check, collect
from xalen_batch.webhooks import endpoints, history

# A word in all of the neighbour's texts: an answer to another caller with this word is a leak.
CANARY = "canary-7f3a9c"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: str

    def masked(self, id: str) -> tuple[int, str]:
        # Some errors have the id of their request.
        return self.status, re.sub("req_[0-9a-f]{32}", "REQUEST", self.body.replace(id, "ID"))


class Client:
    """One connection to the API."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)

    def ask(self, request: Request, secret: str | None) -> Answer:
        method, address, body, headers = request.encoded()
        if secret is not None:
            headers["authorization"] = f"Bearer {secret}"
        self._connection.request(method, address, body, headers)
        answer = self._connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, found, answer.read().decode("utf-8", "replace"))

    def close(self) -> None:
        self._connection.close()


@dataclass(frozen=True)
class Neighbour:
    """The owner of the objects, their ids, and the keys of the other callers.

    `single`: keys of the other account, by their only scope.
    """

    owner: Owner
    secret: str
    ids: dict[Kind, str]
    secrets: dict[Actor, str | None]
    single: dict[Scope, str]
    without: dict[Scope, str]
    # The other callers' own ids, by the path parameter's name. They fill the path of a request that
    # has the neighbour's id elsewhere.
    own: dict[Actor, dict[str, str]]

    def secret_of(self, actor: Actor, scope: Scope) -> str | None:
        return self.without[scope] if actor is Actor.WRONG_SCOPE else self.secrets[actor]

    def leaks(
        self, answer: Answer, actor: Actor | None = None, asked_with: str | None = None
    ) -> list[str]:
        """The neighbour's data in an answer, except the requested id, and the account's name if it
        is the actor's account as well.
        """
        # The id of a message batch has that of its batch in it.
        asked = asked_with or ""
        theirs = {id for id in (CANARY, self.secret, *self.ids.values()) if id not in asked}
        if actor is Actor.OTHER_MODE:
            theirs.discard(self.ids[Kind.ACCOUNT])
        shown = answer.body + json.dumps(answer.headers)
        return [found for found in theirs if found in shown]

    def rows(self) -> set[str]:
        """All rows and files except those of the other callers."""
        others = [
            str(UUID(hex=id[-32:]))
            for own in self.own.values()
            for name, id in own.items()
            if name not in OTHER_PARAMETERS
        ]
        with db.reading() as session:
            theirs = session.scalars(
                select(Batch.id).where((Batch.account_id != self.owner.account_id) | Batch.livemode)
            )
            others += map(str, theirs)
        return {
            row
            for row in rows()
            if not any(id in row for id in others) and not self._is_tally_of_another(row)
        }

    def _is_tally_of_another(self, row: str) -> bool:
        """Whether a row adds up the files of another caller, who may upload one."""
        is_owners = str(self.owner.account_id) in row and '"livemode": false' in row
        return row.startswith(AccountTally.__tablename__) and not is_owners


def move_in() -> Neighbour:
    with db.transaction() as session:
        account = factories.account(session, CANARY)
        owner = Owner(account.id, livemode=False)
        secret = factories.key(session, account, scopes=Scope)
        caller = accounts.authenticate(session, secret)
        found = _belongings(session, caller)
    batch = billing.ended(
        [billing.Ran(Usage(10, 5)), billing.Ran(billing.REFUSED)], caller, meta={"note": CANARY}
    )
    with db.transaction() as session:
        _answer(session, batch)
        for kind, file in ((Kind.OUTPUT, batch.output_file_id), (Kind.ERRORS, batch.error_file_id)):
            assert file is not None
            found[kind] = ids.render("file", file)
        found[Kind.BATCH] = ids.render("batch", batch.id)
        found[Kind.MESSAGE_BATCH] = ids.render("msgbatch", batch.id)
        invoice = session.execute(
            text("SELECT id FROM invoices WHERE batch_id = :batch"), {"batch": batch.id}
        ).scalar_one()
        found[Kind.INVOICE] = ids.render("inv", invoice)
        note = credit_notes.create(session, batch, reason=CANARY)
        found[Kind.CREDIT_NOTE] = ids.render("cn", note.id)
        past, long_ago = (
            datetime.now(UTC) - timedelta(seconds=1),
            datetime.now(UTC) - timedelta(days=1),
        )
        revoked, revoked_secret = keys.create(session, owner, name=CANARY, scopes=Scope)
        keys.revoke(session, revoked)
        expired, expired_secret = keys.create(
            session, owner, name=CANARY, scopes=Scope, expires_at=past
        )
        expired.created_at = long_ago
        found[Kind.KEY] = ids.render("key", keys.create(session, owner, name=CANARY)[0].id)
        stranger = factories.account(session)
        secrets: dict[Actor, str | None] = {
            Actor.OTHER_ACCOUNT: factories.key(session, stranger, scopes=Scope),
            Actor.OTHER_MODE: factories.key(session, account, livemode=True, scopes=Scope),
            Actor.REVOKED: revoked_secret,
            Actor.EXPIRED: expired_secret,
            Actor.NO_KEY: None,
            Actor.WRONG_KEY: secret[:-6] + "000000",
        }
        own = {actor: _own(session, str(secrets[actor])) for actor in Actor if actor.is_valid}
        single = {scope: factories.key(session, stranger, scopes=[scope]) for scope in Scope}
        without = {
            scope: factories.key(session, account, scopes=set(Scope) - {scope}) for scope in Scope
        }
    return Neighbour(owner, secret, found, secrets, single, without, own)


def _belongings(session: Session, caller: Caller) -> dict[Kind, str]:
    line = factories.chat_line(CANARY, content=CANARY)
    file, unused, template = (
        factories.input_file(session, caller, [line], filename=f"{CANARY}.jsonl", id=ids.new())
        for _ in range(3)
    )
    running = factories.batch(session, caller, file, status="in_progress", meta={"note": CANARY})
    schedule = factories.schedule(
        session,
        caller,
        name=CANARY,
        template_file_id=ids.render("file", template.id),
        metadata={"note": CANARY},
        overlap="allow",
    )
    inbox = factories.schedule(session, caller, name=CANARY, inbox={})
    collect(session, inbox, check(caller, inbox, json.dumps(line).encode(), "json"))
    run = manual.run_now(session, schedule)
    webhook = endpoints.create(
        session, caller, url=f"https://example.com/{CANARY}", description=CANARY
    )
    event = history.test(session, webhook).event
    for route in ("POST /v1/files", "POST /v1/batches", "POST /v1/schedules"):
        session.execute(
            insert(IdempotencyKey).values(
                account_id=caller.account_id,
                livemode=caller.livemode,
                key=IDEMPOTENCY_KEY + ("" if route == "POST /v1/files" else route),
                route=route,
                fingerprint=b"",
                answer=CANARY.encode(),
            )
        )
    return {
        Kind.FILE: ids.render("file", file.id),
        Kind.UNUSED_FILE: ids.render("file", unused.id),
        Kind.TEMPLATE: ids.render("file", template.id),
        Kind.RESPONSE: _response(session, caller, CANARY),
        Kind.RUNNING: ids.render("batch", running.id),
        Kind.RUNNING_MESSAGE_BATCH: ids.render("msgbatch", running.id),
        Kind.SCHEDULE: ids.render("sched", schedule.id),
        Kind.INBOX: ids.render("sched", inbox.id),
        Kind.WEBHOOK: ids.render("whe", webhook.id),
        Kind.EVENT: ids.render("evt", event.id),
        Kind.RUN: ids.render("run", run.id),
        Kind.ACCOUNT: ids.render("acct", caller.account_id),
        Kind.UPLOAD: _upload(session, caller, CANARY, UUID(int=1)),
        Kind.OTHER_UPLOAD: _upload(session, caller, CANARY),
    }


def _upload(session: Session, caller: Caller, name: str, part_id: UUID | None = None) -> str:
    """A pending upload, with its only part if that has an id."""
    content = name.encode()
    upload = uploads.create(
        session, caller, size=len(content), purpose="batch", filename=name, mime_type="txt"
    )
    id = ids.render("upload", upload.id)
    if part_id is not None:
        obstore.put(storage.store(), storage.part_key(part_id), content)
        uploads.add_part(session, caller, id, id=part_id, size=len(content), sha256=content)
    return id


def _answer(session: Session, batch: Batch) -> None:
    """Put the canary into the results and file names of a batch, which downloads show."""
    session.commit()
    # The serving role changes no custom id.
    with as_owner() as owner:
        for row in owner.query(Result).where(Result.batch_id == batch.id):
            row.body, row.custom_id = (
                json.dumps({"content": CANARY}).encode(),
                f"{CANARY}-{row.line_no}",
            )
    for file in session.query(File).where(File.batch_id == batch.id):
        file.filename = f"{CANARY}.jsonl"
        file.size = sum(map(len, results.chunks(batch.id, FilePart(file.part))))


def _response(session: Session, caller: Caller, text: str) -> str:
    """A Response that was asked for in the background, and has ended."""
    line = {"custom_id": "call", "body": {"model": factories.CHAT_MODEL, "input": text}}
    batch = factories.batch(
        session,
        caller,
        factories.input_file(session, caller, [line], purpose="call"),
        endpoint=RESPONSES,
        call="background",
        status="cancelled",
    )
    return ids.render("resp", batch.id)


def _own(session: Session, secret: str) -> dict[str, str]:
    """Create an object of each kind for another caller, with which the neighbour's could be mixed
    up.
    """
    caller = accounts.authenticate(session, secret)
    file = factories.input_file(session, caller, [factories.chat_line("mine")])
    webhook = endpoints.create(session, caller, url="https://example.com/mine")
    return {
        "webhook_id": ids.render("whe", webhook.id),
        "event_id": ids.render("evt", history.test(session, webhook).event.id),
        "file_id": ids.render("file", file.id),
        "batch_id": ids.render("batch", factories.batch(session, caller, file).id),
        "message_batch_id": ids.render("msgbatch", factories.batch(session, caller, file).id),
        "response_id": _response(session, caller, "mine"),
        "schedule_id": ids.render(
            "sched", factories.schedule(session, caller, name="mine", inbox={}).id
        ),
        "key_id": ids.render("key", keys.create(session, caller, name="mine")[0].id),
        "upload_id": _upload(session, caller, "mine"),
        **OTHER_PARAMETERS,
    }


def rows() -> set[str]:
    """All rows of the database, except the last use of keys, and all stored files."""
    with db.reading() as session:
        found = {
            f"{table.name} {row}"
            for table in Base.metadata.sorted_tables
            for row in session.scalars(
                text(f"SELECT (to_jsonb(t) - 'last_used_at')::text FROM {table.name} t")
            )
        }
    for path in storage.folder().rglob("*"):
        # Files that other tests left in drop folders may have a name that is not valid UTF-8.
        if path.is_file() and "health" not in path.parts:
            found.add(f"{path!r} {path.stat().st_size} {path.stat().st_mtime_ns}")
    return found


def nowhere(id: str) -> str:
    """An unknown id of the same kind."""
    return id[:-32] + UUID(int=ids.new().int ^ 1).hex


def filled(request: Request, own: Mapping[str, str]) -> Request:
    """The request with the caller's own ids for the path parameters that have no value."""
    given = dict(request.parameters)
    missing = [name for name in own if f"{{{name}}}" in request.path and name not in given]
    return Request(
        request.method,
        request.path,
        request.where,
        (*request.parameters, *((name, own[name]) for name in missing)),
        request.body,
        request.headers,
    )


def scope_of(
    neighbour: Neighbour, client: Client, method: str, path: str, operation: Mapping[str, Any]
) -> Scope:
    """The only scope with which a key may call the route, found by trying each on an unknown id."""
    request = next(isolation.requests(method, path, operation))
    nothing = dict.fromkeys(
        (
            "file_id",
            "batch_id",
            "message_batch_id",
            "response_id",
            "schedule_id",
            "key_id",
            "upload_id",
            "webhook_id",
            "credit_note_id",
            "event_id",
            "model_id",
            "month",
            "custom_id",
        ),
        "nothing",
    )
    statuses = {
        scope: client.ask(filled(request, nothing), secret).status
        for scope, secret in neighbour.single.items()
    }
    [right] = [scope for scope, status in statuses.items() if status != 403]
    assert statuses[right] != 401
    return right


def connect(port: int) -> Iterator[Client]:
    client = Client(port)
    yield client
    client.close()
