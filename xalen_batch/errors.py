"""The errors that users see, with their HTTP status and OpenAI `type` and `code`.

XalenError
├── InvalidRequest          400
├── Unauthenticated         401
├── Forbidden               403
├── NotFound                404
├── MethodNotAllowed        405
├── RequestTimeout          408
├── Conflict                409
│   ├── NotCancellable      409
│   ├── WebhookDisabled     409
│   ├── FileBusy            409
│   └── UploadBusy          409
├── PreconditionFailed      412
├── TooLarge                413
├── UnsupportedMediaType    415
├── RangeNotSatisfiable     416
├── TooManyRequests         429
│   └── OverLimit           429
├── HeadTooLarge            431
├── ServerError             500
├── Unavailable             503
├── GatewayTimeout          504
│   └── StillQueued         504
└── StorageFull             507
ConfigError                 an error in a setting, the catalog or a file of the operator
"""

from typing import ClassVar

# Characters of a caller's value that an error message quotes.
QUOTED_CHARS = 100
# The same in the error of a line, as a file may have many of these.
_QUOTED_OF_LINE = 60


class XalenError(Exception):
    """An expected failure, which the API renders in OpenAI's error shape."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = None
    retry_after: float | None = None
    # The header `x-should-retry`, which OpenAI's clients obey. None: they decide by the status.
    should_retry: ClassVar[bool | None] = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    def body(self) -> dict[str, dict[str, str | None]]:
        """The JSON body of the answer. All four keys are always present."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class InvalidRequest(XalenError):
    status = 400
    type = "invalid_request_error"


class Unauthenticated(XalenError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Forbidden(XalenError):
    status = 403
    type = "permission_error"
    code = "insufficient_scope"


class NotFound(XalenError):
    status = 404
    type = "not_found_error"
    code = "not_found"


class MethodNotAllowed(XalenError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class RequestTimeout(XalenError):
    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class Conflict(XalenError):
    """A valid request that the object's state does not allow."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"


class NotCancellable(Conflict):
    # By default OpenAI's clients retry a 409, but this state is final.
    should_retry = False
    code = "batch_not_cancellable"


class WebhookDisabled(Conflict):
    # Its owner has to enable it first.
    should_retry = False
    code = "webhook_disabled"


class FileBusy(Conflict):
    """A batch that is about to end still reads the file, which can be deleted moments later."""

    should_retry = True
    code = "file_in_use"
    retry_after = 2.0


class UploadBusy(Conflict):
    """Another request completes, cancels or extends the upload, and is through moments later."""

    should_retry = True
    code = "upload_busy"
    retry_after = 2.0


class PreconditionFailed(XalenError):
    status = 412
    type = "invalid_request_error"
    code = "precondition_failed"


class TooLarge(XalenError):
    status = 413
    type = "invalid_request_error"
    code = "file_too_large"


class UnsupportedMediaType(XalenError):
    status = 415
    type = "invalid_request_error"
    code = "unsupported_content_encoding"


class RangeNotSatisfiable(XalenError):
    """A Range that begins behind the end of the content, which has `size` bytes."""

    status = 416
    type = "invalid_request_error"
    code = "range_not_satisfiable"

    def __init__(self, size: int) -> None:
        super().__init__(
            f"Range: the file has {size:,} bytes, and none of them is in this range.", param="Range"
        )
        self.headers = {"Content-Range": f"bytes */{size}"}


class TooManyRequests(XalenError):
    """A request beyond a rate limit or a quota. `retry_after`: seconds until it may be repeated."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(
        self, message: str, *, retry_after: float, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.retry_after = retry_after


class OverLimit(TooManyRequests):
    """A request that alone exceeds the limit, so that waiting does not help."""

    should_retry = False

    def __init__(self, message: str, *, code: str) -> None:
        XalenError.__init__(self, message, code=code)


class HeadTooLarge(XalenError):
    status = 431
    type = "invalid_request_error"
    code = "request_head_too_large"


class ServerError(XalenError):
    status = 500
    code = "internal_error"


class Unavailable(XalenError):
    status = 503
    code = "service_unavailable"
    retry_after = 5.0


class GatewayTimeout(XalenError):
    status = 504
    code = "model_timeout"


class StillQueued(GatewayTimeout):
    """A flex call that goes on after its client has waited long enough."""

    # By default OpenAI's clients repeat a 504, which would run and bill the call twice.
    should_retry = False
    code = "still_queued"


class StorageFull(XalenError):
    status = 507
    code = "storage_full"


class ConfigError(Exception):
    """An error in the operator's configuration. The message names it and the remedy."""


def quoted(value: object) -> str:
    """A user's value for a message: cut, with control characters escaped.

    The text is therefore harmless on a terminal and in HTML, and `jsonb` can hold it.
    """
    # Cut before escaping: a value can have megabytes.
    text = value[: _QUOTED_OF_LINE + 1] if isinstance(value, str) else value
    if isinstance(text, str | int | float | bool | None):
        shown = repr(text)
    else:
        shown = type(value).__name__
    return shown if len(shown) <= _QUOTED_OF_LINE else shown[: _QUOTED_OF_LINE - 1] + "…"
