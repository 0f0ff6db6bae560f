"""The states of a batch and of a task, and the only moves between them."""

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
    BatchStatus.VALIDATING: frozenset({BatchStatus.FAILED, BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING}),
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


class TaskState(StrEnum):
    PENDING = "pending"  # claimable, from `not_before` on
    RUNNING = "running"  # one worker holds its fence until `lease_until`
    DONE = "done"  # every line has a result


TASK_MOVES: dict[TaskState, frozenset[TaskState]] = {
    # Pending → done: a cancelled or expired batch ends the lines that nobody started.
    TaskState.PENDING: frozenset({TaskState.RUNNING, TaskState.DONE}),
    # Running → pending: the lease ran out, or the worker handed the task back.
    TaskState.RUNNING: frozenset({TaskState.PENDING, TaskState.DONE}),
    TaskState.DONE: frozenset(),
}


class LineError(StrEnum):
    """Codes of lines that ended without an answer from a backend."""

    BATCH_EXPIRED = "batch_expired"
    BATCH_CANCELLED = "batch_cancelled"
    REQUEST_TIMEOUT = "request_timeout"
    BACKEND_UNAVAILABLE = "backend_unavailable"
    BAD_ANSWER = "bad_answer"
    WORKER_LOST = "worker_lost"
