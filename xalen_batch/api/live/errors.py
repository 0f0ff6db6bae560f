"""The errors of live calls whose backend did not answer."""

from xalen_batch.backends.contract import Retryable
from xalen_batch.errors import GatewayTimeout, TooManyRequests, Unavailable, XalenError

# Seconds after which a client may repeat a call, if the backend names none.
RETRY_AFTER = 1.0


def busy(model: str, seconds: float | None) -> TooManyRequests:
    """The error of a call for which the backend has no capacity."""
    return TooManyRequests(
        f"{model} is busy: as many calls as it takes are in flight. Send this one again when"
        " `retry-after` is over, or with `service_tier: flex`, which waits and costs less.",
        retry_after=RETRY_AFTER if seconds is None else seconds,
        code="model_busy",
    )


def of_outcome(model: str, outcome: Retryable) -> XalenError:
    """The error of a call that got no answer. The backend's own words are in the log alone."""
    if outcome.is_overload:
        return busy(model, outcome.retry_after)
    if outcome.is_timeout:
        return GatewayTimeout(
            f"{model} did not answer in time. Send the call again, or run it in a batch."
        )
    return Unavailable(
        f"{model} cannot be reached right now, or gave no usable answer. Nothing was billed. Send"
        " the call again in a few seconds."
    )
