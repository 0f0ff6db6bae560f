"""The options of `run`, `submit`, `wait` and `retry`, and the requests that carry them."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from xalen._options import Overrides
from xalen.batch.source import Source
from xalen.batch.watch import WaitOptions
from xalen.types.schedule import ExecutionWindow, ExpiresAfter, OnInvalid
from xalen.types.webhook import BatchWebhook


class BatchOptions(TypedDict, total=False):
    # For bodies that name no model.
    model: str
    # `24h`, the default, or whole hours or days from `1h` to `7d`.
    completion_window: str
    metadata: Mapping[str, str]
    output_expires_after: ExpiresAfter
    # Hours in which lines may be started.
    execution_window: ExecutionWindow
    # What invalid lines do: `fail`, the default, runs nothing; `skip` runs the others.
    on_invalid: OnInvalid
    # Gets the events of the batch.
    webhook: BatchWebhook
    # The same key makes no second batch: a program that starts again finds the batch of its last
    # start. By default a new one.
    idempotency_key: str


class RunOptions(BatchOptions, WaitOptions):
    pass


class RetryOptions(Overrides, total=False):
    # Only lines that failed with these codes, as the invoice names them, such as `http_503`.
    codes: Sequence[str]
    # As in the first batch, if left out.
    completion_window: str
    metadata: Mapping[str, str]
    # Of the retry alone; that of the first batch does not get its events.
    webhook: BatchWebhook


def idempotency(key: str | None, what: str) -> dict[str, str]:
    """The header with the caller's key. Without one, the client makes a key for each request."""
    # A key belongs to one request, and a batch takes several.
    return {} if key is None else {"Idempotency-Key": f"{key}.{what}"}


def creation(source: Source, file_id: str, options: BatchOptions) -> dict[str, Any]:
    """The arguments of `create`."""
    standard = ("metadata", "output_expires_after")
    extensions = ("execution_window", "on_invalid", "webhook")
    given = cast(dict[str, Any], options)
    return {
        "input_file_id": file_id,
        "endpoint": source.endpoint,
        "completion_window": options.get("completion_window", "24h"),
        **{name: given[name] for name in standard if given.get(name) is not None},
        "extra_body": {name: given[name] for name in extensions if given.get(name) is not None},
        "extra_headers": idempotency(options.get("idempotency_key"), "batch"),
    }
