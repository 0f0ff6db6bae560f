"""The states of batches, tasks and runs of schedules, and the allowed moves between them."""

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
    # To finalizing: every line has ended, or the completion window has passed.
    BatchStatus.IN_PROGRESS: frozenset({BatchStatus.FINALIZING, BatchStatus.CANCELLING}),
    BatchStatus.FINALIZING: frozenset({BatchStatus.COMPLETED, BatchStatus.EXPIRED}),
    BatchStatus.CANCELLING: frozenset({BatchStatus.CANCELLED}),
    BatchStatus.FAILED: frozenset(),
    BatchStatus.COMPLETED: frozenset(),
    BatchStatus.EXPIRED: frozenset(),
    BatchStatus.CANCELLED: frozenset(),
}

TERMINAL = frozenset(status for status in BatchStatus if status.is_terminal)
# Lines may start in this status, or in a later one.
MAY_START = frozenset({BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS})
# No further line starts; the batch ends when its lines in flight have ended.
ENDING = frozenset({BatchStatus.CANCELLING, BatchStatus.FINALIZING})


class OnInvalid(StrEnum):
    """How a batch treats invalid lines of its input file."""

    FAIL = "fail"  # nothing runs
    SKIP = "skip"  # they end in the error file, and the other lines run


class QueuedCall(StrEnum):
    """How the client of a queued call gets its answer."""

    FLEX = "flex"  # it waits for it
    BACKGROUND = "background"  # it asks for it later


class UploadStatus(StrEnum):
    """The states of an upload in parts. It leaves `pending` once, for one of the others."""

    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class TaskState(StrEnum):
    """The states of a task. Guarded UPDATEs of `models/` make these moves, and no others:

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


class AttemptError(StrEnum):
    """Why an attempt at a line brought no answer."""

    BUSY = "busy"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"  # no connection, or a refused key: the operator has to act
    CONNECTION_BROKEN = "connection_broken"
    BAD_ANSWER = "bad_answer"
    REFUSED = "refused"  # the line's fault or the setup's
    SERVER_ERROR = "server_error"
    WORKER_LOST = "worker_lost"


# The codes of lines that were not run before their batch ended: they neither completed nor failed.
UNRUN = frozenset({LineError.BATCH_EXPIRED, LineError.BATCH_CANCELLED})


class ScheduleStatus(StrEnum):
    ACTIVE = "active"
    PAUSED = "paused"
    ENDED = "ended"  # it will not fire again


class RunState(StrEnum):
    """The state of a schedule's run, for one instant of the schedule."""

    WAITING = "waiting"  # for the run before it, or until its source is ready
    RUNNING = "running"  # its batch has not ended
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"  # by a rule of its schedule
    MISSED = "missed"  # no process was running to fire it on time


RUN_MOVES: dict[RunState, frozenset[RunState]] = {
    RunState.WAITING: frozenset({RunState.RUNNING, RunState.FAILED, RunState.SKIPPED}),
    RunState.RUNNING: frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED}),
    # To waiting again: a backfill.
    RunState.SKIPPED: frozenset({RunState.WAITING}),
    RunState.MISSED: frozenset({RunState.WAITING}),
    RunState.SUCCEEDED: frozenset(),
    RunState.FAILED: frozenset(),
    RunState.CANCELLED: frozenset(),
}
OPEN_RUNS = frozenset({RunState.WAITING, RunState.RUNNING})
