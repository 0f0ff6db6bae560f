"""An account's objects for the pages: batches in several states, with what hostile users write."""

from dataclasses import dataclass
from urllib.parse import quote, urlencode

import orjson
from sqlalchemy import update

from tests import factories, ran
from tests.billing import REFUSED
from xalen_batch import db, ids
from xalen_batch.accounts.accounts import Caller
from xalen_batch.backends.contract import Answered
from xalen_batch.endpoints.usage import Usage
from xalen_batch.models import File
from xalen_batch.webhooks import endpoints

# Each would run a script, end a tag or an attribute, or break the page, if it was not escaped.
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "</textarea></title></style><b>bold",
    "a&b<c>\u2028\u202e",
)


@dataclass(frozen=True)
class Made:
    """Public ids of what an account has."""

    ended: str
    failed: str
    waiting: str
    file: str
    schedule: str
    webhook: str


def everything(caller: Caller) -> Made:
    """A batch that has ended with and without success, one that failed validation, one to run."""
    notes = {f"{number}{text[:20]}": text for number, text in enumerate(HOSTILE)}
    endings = {text: _answered(text) for text in HOSTILE}
    ended = ran.ended({**endings, "refused": REFUSED}, caller, meta=notes)
    with db.transaction() as session:
        session.execute(
            update(File).where(File.id == ended.input_file_id).values(filename=HOSTILE[0])
        )
        file = factories.input_file(
            session, caller, [factories.chat_line(HOSTILE[1])], filename=HOSTILE[1]
        )
        failed = factories.batch(
            session,
            caller,
            file,
            status="failed",
            meta=notes,
            failed_at=db.now(session),
            errors=[
                {"code": text[:30], "line": number, "message": text, "param": text}
                for number, text in enumerate(HOSTILE, start=1)
            ],
        )
        waiting = factories.batch(session, caller, file, meta=notes)
        schedule = factories.schedule(session, caller, name=HOSTILE[0])
        webhook = endpoints.create(
            session,
            caller,
            url="https://example.com/hook",
            types=None,
            description=HOSTILE[1],
        )
    return Made(
        *(ids.render("batch", batch.id) for batch in (ended, failed, waiting)),
        file=ids.render("file", file.id),
        schedule=ids.render("sched", schedule.id),
        webhook=ids.render("whe", webhook.id),
    )


def addresses(found: Made) -> dict[str, list[str]]:
    """Addresses of each page that is read, by its route."""
    ended, failed, waiting = (
        f"/console/batches/{id}" for id in (found.ended, found.failed, found.waiting)
    )
    return {
        "/console": ["/console"],
        "/console/batches": [
            "/console/batches",
            "/console/batches?days=2&status=completed",
            f"/console/batches?{urlencode({'note': f'0{HOSTILE[0][:20]}={HOSTILE[0]}'})}",
        ],
        "/console/batches/new": [
            "/console/batches/new",
            f"/console/batches/new?file_id={found.file}",
        ],
        "/console/batches/{batch_id}": [ended, failed, waiting, f"{ended}?only=failed"],
        "/console/batches/{batch_id}/line": [
            f"{ended}/line?id={quote(text)}" for text in (*HOSTILE, "refused")
        ],
        "/console/batches/{batch_id}/cancel": [f"{waiting}/cancel"],
        "/console/batches/{batch_id}/retry": [f"{ended}/retry"],
        "/console/schedules": ["/console/schedules"],
        "/console/schedules/{schedule_id}": [f"/console/schedules/{found.schedule}"],
        "/console/schedules/{schedule_id}/run": [f"/console/schedules/{found.schedule}/run"],
        "/console/files": ["/console/files", "/console/files?purpose=batch_output"],
        "/console/files/{file_id}": [f"/console/files/{found.file}"],
        "/console/files/{file_id}/delete": [f"/console/files/{found.file}/delete"],
        "/console/invoices": ["/console/invoices", "/console/invoices?month=2020-02"],
        "/console/invoices/{id}": [f"/console/invoices/{found.ended}"],
        "/console/models": ["/console/models"],
        "/console/settings": ["/console/settings"],
        "/console/settings/webhooks/{webhook_id}": [f"/console/settings/webhooks/{found.webhook}"],
    }


def _answered(text: str) -> Answered:
    body = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    return Answered(200, orjson.dumps(body), Usage(1_234, 567))
