"""Checks of `doctor` that concern all processes of an installation: the database's rights, the file
store, the workers and the open batches.
"""

from datetime import timedelta

from xalen_batch.cli.doctor.findings import Doubtful, Skipped, Wrong

# The most differences that a finding names.
MOST_NAMED = 5
# The most open batches that are read, the oldest first.
MOST_BATCHES = 1_000
# Workers seal a batch moments after it has ended.
SEALED_WITHIN = timedelta(hours=1)


def database_needs(has_database: bool) -> str:
    if not has_database:
        raise Skipped("not checked: no database")
    import psycopg

    from xalen_batch import migrate
    from xalen_batch.config import settings

    try:
        lacks = migrate.lacks()
    except psycopg.Error as error:
        raise Wrong(
            f"The role that owns the tables cannot connect: {str(error).partition(chr(10))[0]}"
        ) from error
    if lacks:
        other = ""
        if not settings().migrate_database_url:
            other = (
                " If another role owns the tables, name it in XALEN_MIGRATE_DATABASE_URL instead."
            )
        raise Wrong(" ".join(lacks) + other)
    return "version, encoding, extension and rights will do"


def rights(has_database: bool) -> str:
    _skip_without_schema(has_database)
    from xalen_batch import db
    from xalen_batch.migrate import rights

    with db.reading() as session:
        found = rights.look(session)
    if found.excess:
        raise Doubtful(
            f"The role {found.role} {', '.join(found.excess[:MOST_NAMED])}: what serves could"
            " switch off the triggers that guard invoices and the audit log. Let another role own"
            " the tables: set XALEN_MIGRATE_DATABASE_URL (docs/security.md)."
        )
    if found.missing:
        raise Wrong(
            f"The role {found.role} lacks {', '.join(found.missing[:MOST_NAMED])}: xalen-batch"
            " migrate"
        )
    return f"{found.role} owns nothing"


def store_mark(has_database: bool) -> str:
    _skip_without_schema(has_database)
    from xalen_batch import storage
    from xalen_batch.storage import marks

    if not storage.folder().exists():
        raise Skipped("not checked: the storage folder is not there")
    try:
        marks.confirm()
    except marks.Unplaced as finding:
        raise Skipped(f"not checked: {finding}") from finding
    except marks.Elsewhere as finding:
        raise Wrong(str(finding)) from finding
    return "the store of this database"


def workers(has_database: bool) -> str:
    _skip_without_schema(has_database)
    from xalen_batch import db
    from xalen_batch.models import workers
    from xalen_batch.storage import marks

    _skip_without_catalog()
    with db.reading() as session:
        differences, count = marks.differences(session), len(workers.live(session))
    if differences:
        raise Doubtful(f"{'; '.join(differences[:MOST_NAMED])}.")
    return f"{count} alive" if count else "none alive"


def open_batches(has_database: bool) -> str:
    _skip_without_schema(has_database)
    from collections import Counter

    from sqlalchemy import select

    from xalen_batch import db
    from xalen_batch.batches import waits
    from xalen_batch.models import Batch
    from xalen_batch.states import MAY_START

    _skip_without_catalog()
    with db.reading() as session:
        some = session.scalars(
            select(Batch).where(Batch.status.in_(MAY_START)).order_by(Batch.id).limit(MOST_BATCHES)
        ).all()
        found = waits.of(session, some).values()
    counts = Counter(
        wait.message for wait in found if wait.reason is not waits.Reason.EXECUTION_WINDOW
    )
    if counts:
        most = counts.most_common(MOST_NAMED)
        raise Doubtful(" ".join(f"Waiting: {number:,}. {message}" for message, number in most))
    return f"{len(some):,} open, none waits" if some else "none open"


def sealing(has_database: bool) -> str:
    """Batches that ended long ago and still keep the rows of their day."""
    _skip_without_schema(has_database)
    from sqlalchemy import func, select, text

    from xalen_batch import db, ids
    from xalen_batch.models import Batch
    from xalen_batch.models.batches import UNSEALED
    from xalen_batch.states import TERMINAL

    ended_at = func.coalesce(Batch.completed_at, Batch.expired_at, Batch.cancelled_at)
    with db.reading() as session:
        late = session.scalars(
            select(Batch.id)
            .where(
                text(UNSEALED), Batch.status.in_(TERMINAL), ended_at < func.now() - SEALED_WITHIN
            )
            .order_by(Batch.id)
            .limit(MOST_NAMED)
        ).all()
    if late:
        named = ", ".join(ids.render("batch", id) for id in late)
        raise Doubtful(
            f"Not sealed an hour after they ended: {named}. They keep all rows of their days. Is a"
            " worker running? If so, the log says why: batch.unsealable (docs/operating.md)."
        )
    return "every batch that ended more than an hour ago is sealed"


def webhooks(has_database: bool) -> str:
    """The number of webhooks by their state, and whether deliveries wait although they are due."""
    _skip_without_schema(has_database)
    from sqlalchemy import text

    from xalen_batch import db

    with db.reading() as session:
        enabled, disabled = session.execute(text(_WEBHOOKS)).one()
        late = session.execute(text(_LATE)).scalar_one()
    found = f"{enabled} enabled, {disabled} disabled by what their receivers answered"
    if late:
        raise Doubtful(
            f"{found}. Deliveries that are due for more than five minutes:"
            f" {'at least ' if late == MOST_LATE else ''}{late:,}. Start a worker whose"
            " XALEN_WEBHOOK_IN_FLIGHT is not 0; if they stay, their receivers are slow."
        )
    return found


MOST_LATE = 1_000
_WEBHOOKS = """
    SELECT count(*) FILTER (WHERE status = 'enabled'),
           count(*) FILTER (WHERE status = 'disabled' AND disabled_reason <> 'manual')
    FROM webhook_endpoints WHERE deleted_at IS NULL AND batch_id IS NULL
"""
_LATE = f"""
    SELECT count(*) FROM (
        SELECT FROM webhook_deliveries JOIN webhook_endpoints ON id = endpoint_id
        WHERE state = 'pending' AND due_at < now() - interval '5 minutes' AND status = 'enabled'
            AND deleted_at IS NULL AND (not_before IS NULL OR not_before < now())
        LIMIT {MOST_LATE}
    ) AS late
"""


def kept(has_database: bool) -> str:
    """The size of the largest tables, with their rows as PostgreSQL last estimated them."""
    _skip_without_schema(has_database)
    from sqlalchemy import text

    from xalen_batch import db
    from xalen_batch.config import MiB

    with db.reading() as session:
        tables = session.execute(text(_SIZES)).all()
    shown = [
        f"{table.name} {table.bytes / MiB:,.1f} MiB, about {table.rows:,} rows"
        for table in tables[:MOST_NAMED]
    ]
    total = sum(table.bytes for table in tables) / MiB
    return f"{total:,.1f} MiB in {len(tables)} tables: {'; '.join(shown)}"


# The partitions of a table count as one. PostgreSQL has estimated no rows of a table yet: -1.
_SIZES = """
    SELECT coalesce(whole.relname, part.relname) AS name,
           sum(pg_total_relation_size(part.oid))::bigint AS bytes,
           sum(greatest(part.reltuples, 0))::bigint AS rows
    FROM pg_class AS part
    LEFT JOIN pg_inherits ON inhrelid = part.oid
    LEFT JOIN pg_class AS whole ON whole.oid = inhparent
    WHERE part.relkind = 'r' AND part.relnamespace = current_schema()::regnamespace
    GROUP BY 1 ORDER BY 2 DESC, 1
"""


def _skip_without_schema(has_database: bool) -> None:
    if not has_database:
        raise Skipped("not checked: no database")
    from xalen_batch import migrate

    if not migrate.is_usable():
        raise Skipped("not checked: the migrations come first")


def _skip_without_catalog() -> None:
    from xalen_batch import catalog
    from xalen_batch.errors import ConfigError

    try:
        catalog.models()
    except ConfigError:
        raise Skipped("not checked: no catalog") from None
