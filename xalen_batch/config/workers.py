"""Settings of workers, and of the processes that they start."""

from pathlib import Path

from pydantic import BaseModel, Field

from xalen_batch.config.values import MiB


class Workers(BaseModel):
    """Slots, tasks, leases and memory of a worker, and the end of a process."""

    worker_slots: int = Field(
        32, gt=0, description="Tasks that one worker process overlaps on its event loop."
    )
    worker_processes: int = Field(
        1, gt=0, description="Worker processes that `xalen-batch up` starts."
    )
    validation_processes: int = Field(
        2,
        ge=0,
        description=(
            "Processes in which a worker, the API for an estimate, or `xalen-batch validate` reads"
            " an input file of more than 16 MiB. 0: it reads it by itself."
        ),
    )
    task_lines: int = Field(
        1_000,
        gt=0,
        description="Most lines in one task; a worker takes as many of them as it has room for.",
    )
    task_bytes: int = Field(
        4 * MiB,
        gt=0,
        description="Most input bytes in one task (one longer line still makes a task).",
    )
    lease: float = Field(60.0, gt=1, description="How long a silent worker keeps its task.")
    poll_interval: float = Field(
        1.0, gt=0, description="Pause between a worker's looks into the database for work."
    )
    tick_interval: float = Field(15.0, gt=0, description="Pause between two sweeps sent by beat.")
    worker_bytes: int = Field(
        256 * MiB,
        ge=32 * MiB,
        description=(
            "Most bytes of requests and answers that one worker process holds: a half for answers,"
            " which are read more slowly while it is used up, a quarter for requests, the rest for"
            " copies of them (docs/limits.md)."
        ),
    )
    flush_lines: int = Field(
        1_000, gt=0, description="Outcomes that a task records in one transaction, at most."
    )
    flush_interval: float = Field(
        0.5, gt=0, description="Longest time an outcome waits to be recorded."
    )
    health_file: Path | None = Field(
        None,
        description=(
            "File that a worker touches whenever it has looked into the database, for health"
            " checks."
        ),
    )
    shutdown_grace: float = Field(
        20.0,
        ge=0,
        description=(
            "Time that requests in flight get to finish when the API or a worker stops: of clients,"
            " and to models."
        ),
    )
    shutdown_delay: float = Field(
        0.0,
        ge=0,
        description=(
            "Time for which a stopping API still takes connections while `/readyz` answers 503. For"
            " balancers that check health: longer than they need to notice."
        ),
    )
