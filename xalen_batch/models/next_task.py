"""The claim: one statement that leases the fair next task.

Its time hardly depends on the number of batches and tasks that wait: a recursive query walks the
index from each queue to the next (a loose index scan).
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Boolean, Float, column, text
from sqlalchemy.orm import Session

from xalen_batch import jsonl
from xalen_batch.models.batches import Batch, backend_of
from xalen_batch.models.tasks import SUSPECT_CRASHES, Task


@dataclass(frozen=True, slots=True)
class FreeCapacity:
    """The number of lines that a worker takes at most; 0: none.

    A field that is None matches any value. The least of the capacities that match a task applies.
    """

    lines: int
    model: str | None = None
    livemode: bool | None = None
    account_id: UUID | None = None
    batch_id: UUID | None = None


class ClaimedTask(NamedTuple):
    """A task that was just claimed, with what its worker needs of its batch.

    `open_for`: seconds from the beginning of the claim until the batch's execution window closes;
    None without a window. `has_more`: whether other tasks are pending, of any account and model.
    """

    batch_id: UUID
    seq: int
    model: str
    lines: int
    line_index: bytes
    fence: int
    attempts: int
    losses: int
    account_id: UUID
    livemode: bool
    endpoint: str
    input_file_id: UUID
    price_snapshot: dict[str, dict[str, str]]
    backends: dict[str, str] | None
    discount_rate: Decimal
    open_for: float | None
    has_more: bool

    @property
    def key(self) -> tuple[UUID, int]:
        return self.batch_id, self.seq

    @property
    def backend(self) -> str | None:
        return backend_of(self.model, livemode=self.livemode, backends=self.backends)


_MATCHES = """
    (l.model IS NULL OR l.model = {0}.model) AND (l.livemode IS NULL OR l.livemode = {1}.livemode)
    AND (l.account_id IS NULL OR l.account_id = {1}.account_id)
"""
# For the batch `b`: the first claimable task of each model whose lane has free capacity. In a batch
# of several models a loose index scan finds the models, so tasks for a full lane are not read.
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
# The condition of a batch `b` of the queue `q` that may run now.
_OF_QUEUE = """
    b.status = 'in_progress' AND b.account_id = q.account_id AND b.livemode = q.livemode AND coalesce(b.model, '') = q.model
    AND b.expires_at > now()
    AND (b.window_closes_at IS NULL OR (b.window_opens_at <= now() AND now() < b.window_closes_at))
"""
# The queues of the account in `turns`, by deadline, each with its first batch that has a claimable
# task and fulfils a condition.
_QUEUES = f"""
    SELECT q.account_id, q.livemode, q.model, turns.rotates_next, first.expires_at, first.id FROM served q CROSS JOIN LATERAL (
        SELECT b.expires_at, b.id FROM batches b CROSS JOIN LATERAL ({_FIRST_TASKS} LIMIT 1) t
        WHERE {_OF_QUEUE} AND {{}} ORDER BY b.expires_at, b.id LIMIT 1
    ) first
    WHERE q.account_id = turns.account_id
    ORDER BY first.expires_at, first.id
"""
_OF_TASK = ("batch_id", "seq", "model", "lines", "line_index", "fence", "attempts", "losses")
_OF_BATCH = (
    "account_id",
    "livemode",
    "endpoint",
    "input_file_id",
    "price_snapshot",
    "backends",
    "discount_rate",
)
_COLUMNS = ", ".join([*(f"t.{name}" for name in _OF_TASK), *(f"b.{name}" for name in _OF_BATCH)])
# Every step is an index scan in the wanted order. LATERAL … LIMIT fixes the order of the joins: the
# planner would otherwise reorder them, and sort, or read hundreds of thousands of tasks.
#
# The values that could change the plan come through the materialized CTEs `rooms` and `bound`. So
# a plan for these values looks no better to PostgreSQL than the generic plan, which it makes once
# for a connection. Planning takes longer than running.
_CLAIM = text(f"""
    WITH RECURSIVE rooms AS MATERIALIZED (
        SELECT * FROM jsonb_to_recordset(CAST(:rooms AS jsonb)) AS l (model text, livemode bool, account_id uuid, batch_id uuid, lines int)
    ), bound AS MATERIALIZED (
        SELECT CAST(:losses AS bigint) AS losses
    ), full_rooms AS MATERIALIZED (
        SELECT * FROM rooms WHERE lines = 0
    ), queues AS (
        -- A queue is the batches of one account, mode and model. Batches of several models are one
        -- queue, whose model is ''. A loose index scan finds the queues: one step for each queue,
        -- however long it is, and none for an idle account.
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
        -- `after_deadline`, `after_id`: batches behind this position come first in this turn.
        SELECT q.account_id, a.rotates_next,
               CASE WHEN a.rotates_next THEN coalesce(a.rotated_deadline, '-infinity') ELSE '-infinity' END AS after_deadline,
               coalesce(a.rotated_batch_id, a.id) AS after_id
        FROM served q JOIN accounts a ON a.id = q.account_id
        GROUP BY q.account_id, a.id
        ORDER BY a.virtual_time, min(q.expires_at), q.account_id
    ), picked AS (
        SELECT t.*, h.account_id, h.rotates_next,
               -- A task whose lines have results also counts them, so it is never split.
               CASE WHEN t.completed + t.failed > 0 THEN t.lines
                    ELSE LEAST(t.lines, COALESCE((
                        SELECT min(l.lines) FROM rooms l WHERE {_MATCHES.format("t", "h")} AND (l.batch_id IS NULL OR l.batch_id = t.batch_id)
                    ), CAST(:room AS int)))
               END AS taken
        FROM turns
        -- The account's queues by deadline. In a round robin turn: first the batches behind the one
        -- that was served last; if concurrent claims hold the locks of all of these, all batches.
        CROSS JOIN LATERAL (
            ({_QUEUES.format("(b.expires_at, b.id) > (turns.after_deadline, turns.after_id)")})
            UNION ALL
            ({_QUEUES.format("turns.rotates_next")})
        ) h
        -- From that batch on, the first task that no concurrent claim has locked.
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
    FROM picked p, batches b WHERE t.batch_id = p.batch_id AND t.seq = p.seq AND b.id = p.batch_id
    -- The same interval as above, since a statement has one snapshot, even if it was just replaced.
    RETURNING {_COLUMNS}, EXTRACT(EPOCH FROM b.window_closes_at - now())::float AS open_for,
        p.taken < p.lines OR (
            SELECT true FROM tasks o WHERE o.state = 'pending' AND (o.batch_id, o.seq) <> (p.batch_id, p.seq)
            ORDER BY o.batch_id, o.model, o.seq LIMIT 1
        ) IS NOT NULL AS has_more
    """).columns(
    *(getattr(Task, name) for name in _OF_TASK),
    *(getattr(Batch, name) for name in _OF_BATCH),
    column("open_for", Float),
    column("has_more", Boolean),
)


def claim(
    session: Session,
    *,
    worker: str,
    lease: float,
    rooms: Sequence[FreeCapacity],
    room: int,
    with_suspects: bool,
) -> ClaimedTask | None:
    """Move the fair next task from pending to running, raise its fence and lease it to `worker`.

    The account with the least virtual time goes first; of equal ones, the account whose first batch
    has the earliest deadline. The turns of an account alternate between its batch with the earliest
    deadline and a round robin over its batches by deadline. In a batch the task with the least
    `seq` goes first.

    `lease`: seconds. `rooms`: the free capacities of the worker's lanes. `room`: lines to take of a
    task that none of them matches, since the worker has no lane for it yet. A task with more lines
    is split: the first lines are claimed, and the others become a new task.

    Returns None if no task can be claimed.
    """
    row = session.execute(
        _CLAIM,
        {
            "worker": worker,
            "lease": lease,
            "rooms": json.dumps([asdict(room) for room in rooms], default=str),
            "room": room,
            "span": jsonl.SPAN_BYTES,
            "losses": sys.maxsize if with_suspects else SUSPECT_CRASHES,
        },
    ).one_or_none()
    return None if row is None else ClaimedTask(*row)
