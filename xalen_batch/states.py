"""The states of a batch, of a task and of a schedule's run, and the only moves between them."""

from enum import StrEnum


class BatchStatus(StrEnum):
    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return not BATCH_MOVES[self]


BATCH_MOVES: dict[BatchStatus, frozenset[BatchStatus]] = {
    BatchStatus.VALIDATING: frozenset(
        {BatchStatus.FAILED, BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING}
    ),
    # Finalizing begins when every line ended, or when the window passed.
    BatchStatus.IN_PROGRESS: frozenset({BatchStatus.FINALIZING, BatchStatus.CANCELLING}),
    BatchStatus.FINALIZING: frozenset({BatchStatus.COMPLETED, BatchStatus.EXPIRED}),
    BatchStatus.CANCELLING: frozenset({BatchStatus.CANCELLED}),
    BatchStatus.FAILED: frozenset(),
    BatchStatus.COMPLETED: frozenset(),
    BatchStatus.EXPIRED: frozenset(),
    BatchStatus.CANCELLED: frozenset(),
}

TERMINAL = frozenset(status for status in BatchStatus if status.is_terminal)
# Those in which lines are started, now or later.
MAY_START = frozenset({BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS})

# Those that start no further line and end by themselves, once the lines in flight have.
ENDING = frozenset({BatchStatus.CANCELLING, BatchStatus.FINALIZING})


class OnInvalid(StrEnum):
    """What invalid lines of an input file do to their batch."""

    FAIL = "fail"  # nothing runs
    SKIP = "skip"  # they end in the error file, and the other lines run


class TaskState(StrEnum):
    """A task's states. The guarded UPDATEs of `models/tasks.py` and `models/next_task.py` make
    these moves and no others:

        pending → running   a worker claims the task
        pending → done      the batch was cancelled or has expired, or the task was split
        running → pending   the lease ran out, or the worker handed the task back
        running → done      the worker recorded the last line
    """

    PENDING = "pending"  # claimable, from `not_before` on
    RUNNING = "running"  # one worker holds its fence until `lease_until`
    DONE = "done"  # every line has a result


class LineError(StrEnum):
    """Codes of lines that ended without an answer from a backend."""

    BATCH_EXPIRED = "batch_expired"
    BATCH_CANCELLED = "batch_cancelled"
    REQUEST_TIMEOUT = "request_timeout"
    BACKEND_UNAVAILABLE = "backend_unavailable"
    BAD_ANSWER = "bad_answer"
    WORKER_LOST = "worker_lost"


# Of lines that nobody ran before their batch ended: they neither completed nor failed.
UNRUN = frozenset({LineError.BATCH_EXPIRED, LineError.BATCH_CANCELLED})


class ScheduleStatus(StrEnum):
    ACTIVE = "active"
    PAUSED = "paused"
    ENDED = "ended"  # no fire is left


class RunState(StrEnum):
    """What became of a schedule's instant."""

    WAITING = "waiting"  # for the run before it, or for its source to be ready
    RUNNING = "running"  # its batch has not ended
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"  # by its schedule's own rules
    MISSED = "missed"  # nothing was there to fire it on time


RUN_MOVES: dict[RunState, frozenset[RunState]] = {
    RunState.WAITING: frozenset({RunState.RUNNING, RunState.FAILED, RunState.SKIPPED}),
    RunState.RUNNING: frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED}),
    # A backfill takes up again what never ran.
    RunState.SKIPPED: frozenset({RunState.WAITING}),
    RunState.MISSED: frozenset({RunState.WAITING}),
    RunState.SUCCEEDED: frozenset(),
    RunState.FAILED: frozenset(),
    RunState.CANCELLED: frozenset(),
}
OPEN_RUNS = frozenset({RunState.WAITING, RunState.RUNNING})
