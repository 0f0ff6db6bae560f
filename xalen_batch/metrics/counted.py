"""What a process counts by events: one definition for each metric.

Seconds, bytes, tokens and US dollars. No label is an account, an id or any text of a user. `mode`
is `live` or `test`. Requests to backends are counted in `metrics/requests.py`, for less CPU.
"""

from functools import cache

from prometheus_client import Counter, Histogram, Info

from xalen_batch import __version__

MINUTE, HOUR = 60.0, 3_600.0
# Of a batch, whose window is 24 hours for most.
LONG = (1.0, 10.0, MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, 24 * HOUR)

Info("xalen_build", "The version of this process.").info({"version": __version__})

HTTP_REQUESTS = Counter(
    "xalen_http_requests",
    "Requests to the API, by the route's template and the status of the answer.",
    ["method", "route", "status"],
)
HTTP_SECONDS = Histogram(
    "xalen_http_request_duration_seconds",
    "From a request's head to the end of its answer.",
    ["route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0),
)

LINES = Counter(
    "xalen_lines_recorded",
    "Lines of batches whose outcome was recorded here: completed or failed.",
    ["model", "mode", "outcome"],
)
CHARGED = Counter(
    "xalen_charged_usd",
    "Charges recorded here, of lines and live calls, as a float. Invoices have exact amounts.",
    ["model", "mode"],
)
LIVE_CALLS = Counter("xalen_live_calls_recorded", "Live calls that were billed.", ["model", "mode"])
STALE_WRITES = Counter(
    "xalen_stale_writes_refused",
    "Outcomes that the fence refused, since the task's lease had ended.",
)
LEASES_RECLAIMED = Counter(
    "xalen_leases_reclaimed",
    "Running tasks whose lease ran out: their worker died, hung or lost the database.",
)

BATCHES_ENDED = Counter("xalen_batches_ended", "Batches that ended here.", ["status", "mode"])
BATCH_SECONDS = Histogram(
    "xalen_batch_duration_seconds",
    "From the creation of a batch to its end.",
    ["mode"],
    buckets=LONG,
)
DEADLINE_MARGIN = Histogram(
    "xalen_batch_deadline_margin_seconds",
    "Time left until a batch's deadline when it ended; below 0: it was late.",
    ["mode"],
    buckets=(0.0, *LONG[2:]),
)
START_SECONDS = Histogram(
    "xalen_batch_start_seconds",
    "From the creation of a batch to its first task: the wait for validation, and validation.",
    ["mode"],
    buckets=(0.1, 0.25, 0.5, *LONG[:7]),
)

SCHEDULE_RUNS = Counter("xalen_schedule_runs", "Runs of schedules that ended here.", ["state"])
FIRE_LAG = Histogram(
    "xalen_schedule_fire_lag_seconds",
    "From the instant for which a schedule was due to the transaction that fired it.",
    buckets=(0.5, 1.0, 2.5, 5.0, 15.0, MINUTE, 5 * MINUTE, HOUR, 6 * HOUR),
)
DELIVERIES = Counter(
    "xalen_webhook_attempts",
    "Attempts to deliver an event to a webhook: delivered, or failed.",
    ["outcome"],
)
UNSEALABLE = Counter(
    "xalen_unsealable_batches",
    "Attempts to seal a batch that ended because its lines and its invoice do not agree.",
)
SWEEPS_FAILED = Counter(
    "xalen_sweeps_failed", "Steps of sweeps that ended with an unexpected error.", ["sweep"]
)


@cache
def http(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    """The metrics of requests with this answer, looked up once: each request asks for them."""
    return HTTP_REQUESTS.labels(method, route, status), HTTP_SECONDS.labels(route)


def mode(livemode: bool) -> str:
    """The value of the label `mode`."""
    return "live" if livemode else "test"
