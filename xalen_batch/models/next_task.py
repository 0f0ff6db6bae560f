"""The claim: the fair next task of all that wait, found in a time that hardly depends on how many
wait.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from uuid import UUID

from sqlalchemy import Float, column, select, text
from sqlalchemy.orm import Session

from xalen_batch import jsonl
from xalen_batch.models.tasks import SUSPECT_LOSSES, Task


@dataclass(frozen=True, slots=True)
class Room:
    """How many lines a worker has room for.

    A field that is None matches any value; of the rooms that match a task, the least holds.
    """

    lines: int
    model: str | None = None
    livemode: bool | None = None
    account_id: UUID | None = None
    batch_id: UUID | None = None


_MATCHES = """
    (l.model IS NULL OR l.model = {0}.model) AND (l.livemode IS NULL OR l.livemode = {1}.livemode)
    AND (l.account_id IS NULL OR l.account_id = {1}.account_id)
"""
# For the batch `b`: of each model that it has tasks of and whose lane is not full, the first task
# that may be claimed now. Where lines name several models, the index leads from each to the next,
# so that tasks for a full lane are not read.
_FIRST_TASKS = f"""
    WITH RECURSIVE models AS (
        SELECT * FROM (
            SELECT t.model FROM tasks t WHERE b.model IS NULL AND t.state = 'pending' AND t.batch_id = b.id ORDER BY t.model LIMIT 1
        ) f
        UNION ALL
        SELECT n.model FROM models m CROSS JOIN LATERAL (
            SELECT t.model FROM tasks t WHERE t.state = 'pending' AND t.batch_id = b.id AND t.model > m.model ORDER BY t.model LIMIT 1
        ) n
    )
    SELECT m.model, f.seq FROM (SELECT b.model WHERE b.model IS NOT NULL UNION ALL SELECT model FROM models) m CROSS JOIN LATERAL (
        SELECT t.seq FROM tasks t
        WHERE t.state = 'pending' AND t.batch_id = b.id AND t.model = m.model
          AND (t.not_before IS NULL OR t.not_before <= now()) AND t.losses < (SELECT losses FROM bound)
        ORDER BY t.seq LIMIT 1
    ) f
    WHERE NOT EXISTS (SELECT FROM full_rooms l WHERE {_MATCHES.format("m", "b")} AND (l.batch_id IS NULL OR l.batch_id = b.id))
    ORDER BY f.seq
"""
# Batches of the queue `q` that may run now, in the order of their deadlines.
_OF_QUEUE = """
    b.status = 'in_progress' AND b.account_id = q.account_id AND b.livemode = q.livemode AND coalesce(b.model, '') = q.model
    AND b.expires_at > now()
    AND (b.window_closes_at IS NULL OR (b.window_opens_at <= now() AND now() < b.window_closes_at))
"""
# The queues of the account in `turns`, each with its first batch of those for which a condition
# holds, by their deadlines.
_QUEUES = f"""
    SELECT q.account_id, q.livemode, q.model, turns.rotates_next, first.expires_at, first.id FROM served q CROSS JOIN LATERAL (
        SELECT b.expires_at, b.id FROM batches b CROSS JOIN LATERAL ({_FIRST_TASKS} LIMIT 1) t
        WHERE {_OF_QUEUE} AND {{}} ORDER BY b.expires_at, b.id LIMIT 1
    ) first
    WHERE q.account_id = turns.account_id
    ORDER BY first.expires_at, first.id
"""
_OPEN_FOR = column("open_for", Float)
# By name: a migration may add others under a worker that does not know them.
_COLUMNS = ", ".join(f"t.{column.name}" for column in Task.__table__.columns)
# Whatever is looked at here is looked up in an index in the order in which it is wanted, and
# LATERAL … LIMIT keeps it so: a join that the planner may turn round would sort, or read tasks by
# the hundred thousand. What the planner can make use of is not bound where it sees it, but comes
# through `rooms` and `bound`: a plan for these values then looks no better to it than one for any
# values, which is made once for a connection. Making it takes longer than running it.
_CLAIM = text(f"""
    WITH RECURSIVE rooms AS MATERIALIZED (
        SELECT * FROM jsonb_to_recordset(CAST(:rooms AS jsonb)) AS l (model text, livemode bool, account_id uuid, batch_id uuid, lines int)
    ), bound AS MATERIALIZED (
        SELECT CAST(:losses AS bigint) AS losses
    ), full_rooms AS MATERIALIZED (
        SELECT * FROM rooms WHERE lines = 0
    ), queues AS (
        -- A queue is the batches of one account, mode and model; those of several models are a queue too, named ''. From each
        -- queue the index leads to the next: as many steps as there are queues, however long they are, and none to an idle account.
        (SELECT b.account_id, b.livemode, coalesce(b.model, '') AS model, b.expires_at
         FROM batches b WHERE b.status = 'in_progress'
         ORDER BY b.account_id, b.livemode, coalesce(b.model, ''), b.expires_at LIMIT 1)
        UNION ALL
        SELECT n.* FROM queues q CROSS JOIN LATERAL (
            SELECT b.account_id, b.livemode, coalesce(b.model, '') AS model, b.expires_at
            FROM batches b
            WHERE b.status = 'in_progress' AND (b.account_id, b.livemode, coalesce(b.model, '')) > (q.account_id, q.livemode, q.model)
            ORDER BY b.account_id, b.livemode, coalesce(b.model, ''), b.expires_at LIMIT 1
        ) n
    ), served AS MATERIALIZED (
        SELECT q.* FROM queues q
        WHERE NOT EXISTS (SELECT FROM full_rooms l WHERE {_MATCHES.format("q", "q")} AND l.batch_id IS NULL)
    ), turns AS MATERIALIZED (
        -- `after_deadline`, `after_id`: in this turn, batches behind this place come first.
        SELECT q.account_id, a.rotates_next,
               CASE WHEN a.rotates_next THEN coalesce(a.rotated_deadline, '-infinity') ELSE '-infinity' END AS after_deadline,
               coalesce(a.rotated_batch_id, a.id) AS after_id
        FROM served q JOIN accounts a ON a.id = q.account_id
        GROUP BY q.account_id, a.id
        ORDER BY a.virtual_time, min(q.expires_at), q.account_id
    ), picked AS (
        SELECT t.*, h.account_id, h.rotates_next,
               -- Lines that have a result are counted in their own task, so such a one is taken whole.
               CASE WHEN t.completed + t.failed > 0 THEN t.lines
                    ELSE LEAST(t.lines, COALESCE((
                        SELECT min(l.lines) FROM rooms l WHERE {_MATCHES.format("t", "h")} AND (l.batch_id IS NULL OR l.batch_id = t.batch_id)
                    ), CAST(:room AS int)))
               END AS taken
        FROM turns
        -- The account's queues, by the deadlines of their first batches that have something to give: in a turn of the rotation those
        -- behind the batch that it served last. If other claims have just locked all of these, it begins anew, with all batches.
        CROSS JOIN LATERAL (
            ({_QUEUES.format("(b.expires_at, b.id) > (turns.after_deadline, turns.after_id)")})
            UNION ALL
            ({_QUEUES.format("turns.rotates_next")})
        ) h
        -- From there on, the first task that no other claim has just locked.
        CROSS JOIN LATERAL (
            SELECT t.*, b.expires_at AS deadline FROM (SELECT h.account_id, h.livemode, h.model) q, batches b
            CROSS JOIN LATERAL ({_FIRST_TASKS}) f
            CROSS JOIN LATERAL (
                SELECT * FROM tasks t
                WHERE t.state = 'pending' AND t.batch_id = b.id AND t.model = f.model AND t.seq >= f.seq
                  AND (t.not_before IS NULL OR t.not_before <= now()) AND t.losses < (SELECT losses FROM bound)
                ORDER BY t.seq LIMIT 1
                FOR UPDATE OF t SKIP LOCKED
            ) t
            WHERE {_OF_QUEUE} AND (b.expires_at, b.id) >= (h.expires_at, h.id)
            ORDER BY b.expires_at, b.id LIMIT 1
        ) t
        LIMIT 1
    ), charged AS (
        UPDATE accounts a
        SET virtual_time = a.virtual_time + p.taken::float / a.weight, rotates_next = NOT p.rotates_next,
            rotated_deadline = CASE WHEN p.rotates_next THEN p.deadline ELSE a.rotated_deadline END,
            rotated_batch_id = CASE WHEN p.rotates_next THEN p.batch_id ELSE a.rotated_batch_id END
        FROM picked p WHERE a.id = p.account_id
    ), rest AS (
        INSERT INTO tasks (batch_id, seq, model, lines, line_index, losses)
        SELECT batch_id, seq + taken, model, lines - taken, substring(line_index FROM CAST(:span * taken + 1 AS int)), losses
        FROM picked WHERE taken < lines
    )
    UPDATE tasks t
    SET state = 'running', fence = t.fence + 1, attempts = t.attempts + 1, not_before = NULL, worker = :worker,
        lease_until = clock_timestamp() + make_interval(secs => :lease),
        lines = p.taken, line_index = substring(t.line_index FROM 1 FOR CAST(:span * p.taken AS int))
    FROM picked p WHERE t.batch_id = p.batch_id AND t.seq = p.seq
    -- The interval that was looked at above: one statement sees one state, though another may just have been put in its place.
    RETURNING {_COLUMNS}, EXTRACT(EPOCH FROM (SELECT b.window_closes_at FROM batches b WHERE b.id = t.batch_id) - now())::float AS open_for
    """).columns(*Task.__table__.columns, _OPEN_FOR)


def claim(
    session: Session,
    *,
    worker: str,
    lease: float,
    rooms: Sequence[Room],
    room: int,
    with_suspects: bool,
) -> tuple[Task, float | None] | None:
    """Pending → running for the fair next task that there is room for here. None: there is none.

    The account with the least virtual time goes first (of those that stand level, the one whose
    first batch is due next). Its turns alternate: one for the batch with the next deadline, one for
    a round robin over all its batches in the order of their deadlines. In the batch, the task with
    the least `seq`. `room`: lines to take where none of `rooms` matches, as of a lane that is not
    there yet. Of a task with more lines than that the first are taken; the others become a task of
    their own, in their place. With it comes for how many seconds its batch's execution window is
    open, from the moment at which this transaction began; null where there is no window.
    """
    statement = (
        select(Task, _OPEN_FOR).from_statement(_CLAIM).execution_options(populate_existing=True)
    )
    row = session.execute(
        statement,
        {
            "worker": worker,
            "lease": lease,
            "rooms": json.dumps([asdict(room) for room in rooms], default=str),
            "room": room,
            "span": jsonl.SPAN_BYTES,
            "losses": sys.maxsize if with_suspects else SUSPECT_LOSSES,
        },
    ).one_or_none()
    return None if row is None else (row[0], row[1])
