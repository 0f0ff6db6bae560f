"""Quotas: the limits of an account in one mode (docs/decisions/0020).

Usage is counted from the rows themselves, so it cannot drift: the commit that ends a batch also
frees its share. Rows that are too many to count, such as files, are tallied by triggers in the
transaction that changes them (docs/decisions/0028).

Callers count and insert under an advisory lock per account, so concurrent requests cannot exceed a
limit (no write skew).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import (
    ColumnElement,
    Select,
    SQLColumnExpression,
    bindparam,
    delete,
    func,
    or_,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from xalen_batch.accounts.accounts import Owner
from xalen_batch.config import settings
from xalen_batch.errors import OverLimit, TooManyRequests
from xalen_batch.models import (
    AccountQuota,
    AccountTally,
    ApiKey,
    Batch,
    Schedule,
    ScheduleRun,
    WebhookEndpoint,
)
from xalen_batch.models.batches import OPEN
from xalen_batch.models.quotas import Tally
from xalen_batch.states import RunState

# The first half of the key of the advisory lock; the second is a hash of the owner.
LOCK = 7261958
# Seconds after which clients may repeat a refused request: batches may have ended by then.
RETRY_AFTER = 5.0


class Quota(StrEnum):
    """A quantity that is limited for each account and mode.

    Batches, lines and tokens count in batches that have not ended. The two rates are token buckets
    in Redis (ratelimit/account.py); the others are counted here.
    """

    OPEN_BATCHES = "open_batches"
    ENQUEUED_LINES = "enqueued_lines"
    ENQUEUED_TOKENS = "enqueued_tokens"
    FILES = "files"
    STORAGE_BYTES = "storage_bytes"
    PENDING_UPLOADS = "pending_uploads"
    SCHEDULES = "schedules"
    WAITING_RUNS = "waiting_runs"
    INBOX_REQUESTS = "inbox_requests"
    API_KEYS = "api_keys"
    WEBHOOKS = "webhooks"
    IDEMPOTENCY_KEYS = "idempotency_keys"
    REQUESTS_PER_SECOND = "requests_per_second"
    CHANGES_PER_MINUTE = "changes_per_minute"


# None: no limit.
QuotaLimits = Mapping[Quota, int | None]
ENQUEUED = (Quota.OPEN_BATCHES, Quota.ENQUEUED_LINES, Quota.ENQUEUED_TOKENS)

# Error codes of a batch that was admitted, and exceeds a quota when its file is read. OpenAI's
# codes where it has them.
FAULTS = {
    Quota.ENQUEUED_LINES: "line_limit_exceeded",
    Quota.ENQUEUED_TOKENS: "token_limit_exceeded",
    Quota.STORAGE_BYTES: "storage_limit_exceeded",
}

_WAIT = "Wait until batches end, or cancel some, and send it again."
_WORDS = {
    Quota.OPEN_BATCHES: ("open batches", _WAIT),
    Quota.ENQUEUED_LINES: ("lines in open batches", _WAIT),
    Quota.ENQUEUED_TOKENS: ("input tokens in open batches", _WAIT),
    Quota.FILES: ("files", "Delete files that are not needed any more, and send it again."),
    Quota.STORAGE_BYTES: (
        "bytes in files, pending uploads and inboxes",
        (
            "Delete files that are not needed any more, or run the schedules whose inboxes are"
            " full, and send it again."
        ),
    ),
    Quota.PENDING_UPLOADS: (
        "pending uploads",
        "Complete or cancel some, and send it again. An upload expires after an hour.",
    ),
    Quota.SCHEDULES: (
        "schedules",
        "Delete schedules that are not needed any more, and send it again.",
    ),
    Quota.WAITING_RUNS: (
        "schedule runs that wait to start",
        "Wait until some have started, and send it again.",
    ),
    Quota.INBOX_REQUESTS: (
        "requests in inboxes",
        "Wait until schedules have run, or run one now, and send it again.",
    ),
    Quota.API_KEYS: (
        "API keys that can be used",
        "Revoke keys that are not needed any more, and send it again.",
    ),
    Quota.WEBHOOKS: (
        "webhooks",
        "Delete webhooks that are not needed any more, and send it again.",
    ),
    Quota.IDEMPOTENCY_KEYS: (
        "kept idempotency keys",
        "Send it without an Idempotency-Key, or wait until older ones are forgotten.",
    ),
}


@dataclass(frozen=True, slots=True)
class Excess:
    """A quota that a request would exceed: held + asked > limit."""

    quota: Quota
    held: int
    asked: int
    limit: int

    @property
    def message(self) -> str:
        noun, remedy = _WORDS[self.quota]
        if self.is_final:
            remedy = (
                "That is more than the limit itself: send less at once, or ask the operator for a"
                " higher limit."
            )
        return (
            f"The account's limit is {self.limit:,} {noun}. It has {self.held:,}, and this would"
            f" add {self.asked:,}. {remedy} GET /v1/limits shows what is free."
        )

    @property
    def is_final(self) -> bool:
        """Whether the request alone exceeds the limit, so that waiting cannot help."""
        return self.asked > self.limit

    @property
    def fault_code(self) -> str:
        """The error code of a batch that fails for this excess."""
        return FAULTS[self.quota]

    def refusal(self) -> TooManyRequests:
        """The error of a request that is refused for this excess."""
        code = f"{self.quota}_limit"
        if self.is_final:
            return OverLimit(self.message, code=code)
        return TooManyRequests(self.message, retry_after=RETRY_AFTER, code=code)


def limits(session: Session, owner: Owner) -> dict[Quota, int | None]:
    """The limits in force: those that an operator gave this account, else those of the settings."""
    return _limits(given(session, owner))


def _limits(given: QuotaLimits | Mapping[str, int | None] | None) -> dict[Quota, int | None]:
    """The limits of the settings, replaced by those that an operator gave."""
    usual = settings()
    found = {quota: getattr(usual, f"quota_{quota}") for quota in Quota}
    return found | {Quota(name): most for name, most in (given or {}).items()}


def given(session: Session, owner: Owner) -> dict[Quota, int | None]:
    """The limits that an operator gave this account."""
    return {Quota(name): most for name, most in session.execute(_GIVEN, _of(owner))}


def held(session: Session, owner: Owner) -> dict[Quota, int]:
    """The usage of each quota but the rates, as committed by other transactions."""
    return _enqueued(session, owner) | {quota: _counted(session, owner, quota) for quota in _COUNTS}


def admit_batch(session: Session, owner: Owner) -> None:
    """Reserve one more open batch in this transaction.

    Raises TooManyRequests if the account's open batches, lines or tokens are at their limit.
    """
    lock(session, owner)
    found = _excess_enqueued(session, owner, dict.fromkeys(ENQUEUED, 1))
    if found is not None:
        raise found.refusal()


def admit_lines(session: Session, owner: Owner, *, lines: int, tokens: int) -> Excess | None:
    """The excess if an open batch gets these lines and tokens; None: there is capacity.

    The caller holds the account's lock.
    """
    asked = {Quota.ENQUEUED_LINES: lines, Quota.ENQUEUED_TOKENS: tokens}
    return _excess_enqueued(session, owner, asked)


def admit(session: Session, owner: Owner, asked: Mapping[Quota, int]) -> None:
    """Reserve amounts of quotas in this transaction, under the account's lock.

    `asked`: quotas that `excess` counts. Raises TooManyRequests if an amount exceeds its limit.
    """
    lock(session, owner)
    found = excess(session, owner, asked)
    if found is not None:
        raise found.refusal()


def excess(
    session: Session, owner: Owner, asked: Mapping[Quota, int], *, is_recorded: bool = False
) -> Excess | None:
    """The first quota that the amounts in `asked` would exceed; None: none.

    The caller holds the account's lock, unless an estimate is enough. `is_recorded`: this
    transaction has already inserted the rows, so the counts include them. ENQUEUED quotas and rates
    are not counted here.
    """
    given, tallies = session.execute(_GIVEN_AND_TALLIES, _of(owner)).one()
    found = _limits(given)
    # Unlimited quotas are not counted, which saves queries.
    limited = {quota: more for quota, more in asked.items() if found[quota] is not None}
    held = {
        quota: _tallied_or_counted(session, owner, quota, tallies or {}) - is_recorded * more
        for quota, more in limited.items()
    }
    return _excess(found, held, limited)


def _tallied_or_counted(
    session: Session, owner: Owner, quota: Quota, tallies: Mapping[str, int]
) -> int:
    names = _TALLIES.get(quota)
    if names is None:
        return _counted(session, owner, quota)
    return sum(tallies.get(name, 0) for name in names)


def lock(session: Session, owner: Owner) -> None:
    """Take the account's advisory lock until this transaction ends.

    Lock order: the row of a schedule, then this lock, then the rows of batches and tallies.
    """
    session.execute(_LOCK, {"lock": LOCK, "owner": f"{owner.account_id} {owner.livemode}"})


def change(session: Session, owner: Owner, wanted: QuotaLimits) -> None:
    """Set limits of an account, in place of the settings'; None: no limit."""
    for quota, most in wanted.items():
        row = insert(AccountQuota).values(**_of(owner), name=quota.value, most=most)
        session.execute(
            row.on_conflict_do_update(
                index_elements=[AccountQuota.account_id, AccountQuota.livemode, AccountQuota.name],
                set_={"most": row.excluded.most},
            )
        )


def reset(session: Session, owner: Owner, quota: Quota) -> None:
    """Apply the limit of the settings again."""
    mine = (
        AccountQuota.account_id == owner.account_id,
        AccountQuota.livemode == owner.livemode,
        AccountQuota.name == quota,
    )
    session.execute(delete(AccountQuota).where(*mine))


def _excess(
    limits: QuotaLimits, held: Mapping[Quota, int], asked: Mapping[Quota, int]
) -> Excess | None:
    for quota, more in asked.items():
        limit = limits[quota]
        if limit is not None and held[quota] + more > limit:
            return Excess(quota, held[quota], more, limit)
    return None


def _enqueued(session: Session, owner: Owner) -> dict[Quota, int]:
    *held, _ = session.execute(_ENQUEUED, _of(owner)).one()
    return dict(zip(ENQUEUED, map(int, held), strict=True))


def _excess_enqueued(session: Session, owner: Owner, asked: Mapping[Quota, int]) -> Excess | None:
    """As `excess`, for ENQUEUED quotas, with one statement for usage and limits."""
    *held, given = session.execute(_ENQUEUED, _of(owner)).one()
    return _excess(_limits(given), dict(zip(ENQUEUED, map(int, held), strict=True)), asked)


def _counted(session: Session, owner: Owner, quota: Quota) -> int:
    return int(session.execute(_COUNTS[quota], _of(owner)).scalar_one())


def _of(owner: Owner) -> dict[str, object]:
    return {"account_id": owner.account_id, "livemode": owner.livemode}


def _is_of_owner(
    table: type[AccountQuota | AccountTally | ApiKey | Batch | Schedule | WebhookEndpoint],
) -> ColumnElement[bool]:
    return (table.account_id == bindparam("account_id")) & (table.livemode == bindparam("livemode"))


def _sum(column: SQLColumnExpression[int]) -> ColumnElement[int]:
    return func.coalesce(func.sum(column), 0)


# Built once, since every upload and every new batch runs them. Locking and counting are separate
# statements: a count in the same statement would have a snapshot from before the wait for the lock.
_LOCK = text("SELECT pg_advisory_xact_lock(:lock, hashtext(:owner))")
_GIVEN = select(AccountQuota.name, AccountQuota.most).where(_is_of_owner(AccountQuota))
# The limits that an operator gave the account: {name: most}, or null.
_GIVEN_LIMITS = (
    select(func.jsonb_object_agg(AccountQuota.name, AccountQuota.most))
    .where(_is_of_owner(AccountQuota))
    .scalar_subquery()
)
_ENQUEUED = select(
    func.count(), _sum(Batch.total - Batch.failed), _sum(Batch.enqueued_tokens), _GIVEN_LIMITS
).where(_is_of_owner(Batch), text(OPEN), Batch.ledger.is_(None))
_GIVEN_AND_TALLIES = select(
    _GIVEN_LIMITS,
    select(func.jsonb_object_agg(AccountTally.name, AccountTally.amount))
    .where(_is_of_owner(AccountTally))
    .scalar_subquery(),
)


def _tally(*names: Tally) -> Select[int]:
    return select(_sum(AccountTally.amount)).where(
        _is_of_owner(AccountTally), AccountTally.name.in_(names)
    )


# Quotas that are the sums of tallies.
_TALLIES: Mapping[Quota, Sequence[Tally]] = {
    Quota.FILES: (Tally.FILES, Tally.UPLOADS),
    Quota.STORAGE_BYTES: (Tally.FILE_BYTES, Tally.INBOX_BYTES, Tally.UPLOAD_BYTES),
    Quota.PENDING_UPLOADS: (Tally.UPLOADS,),
    Quota.INBOX_REQUESTS: (Tally.INBOX_REQUESTS,),
    Quota.IDEMPOTENCY_KEYS: (Tally.IDEMPOTENCY_KEYS,),
}
_COUNTS: Mapping[Quota, Select[int]] = {
    **{quota: _tally(*names) for quota, names in _TALLIES.items()},
    Quota.SCHEDULES: (
        select(func.count())
        .select_from(Schedule)
        .where(_is_of_owner(Schedule), Schedule.deleted_at.is_(None))
    ),
    Quota.WAITING_RUNS: (
        select(func.count())
        .select_from(ScheduleRun)
        .join(Schedule, Schedule.id == ScheduleRun.schedule_id)
        .where(
            _is_of_owner(Schedule),
            Schedule.deleted_at.is_(None),
            ScheduleRun.state == RunState.WAITING,
        )
    ),
    Quota.API_KEYS: (
        select(func.count())
        .select_from(ApiKey)
        .where(
            _is_of_owner(ApiKey),
            ApiKey.revoked_at.is_(None),
            or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now()),
        )
    ),
    Quota.WEBHOOKS: (
        select(func.count())
        .select_from(WebhookEndpoint)
        .where(
            _is_of_owner(WebhookEndpoint),
            WebhookEndpoint.batch_id.is_(None),
            WebhookEndpoint.deleted_at.is_(None),
        )
    ),
}
