"""Calls from the pages of other origins in a browser (CORS), for the origins of a setting."""

from collections.abc import Sequence
from typing import Any

METHODS = ("GET", "HEAD", "POST", "PATCH", "DELETE")
# Headers of answers that a page may read besides the few that every page may.
EXPOSED = (
    "accept-ranges",
    "content-disposition",
    "content-range",
    "etag",
    "idempotent-replayed",
    "repr-digest",
    "request-id",
    "retry-after",
    "retry-after-ms",
    "x-batch-complete",
    "x-batch-lines-done",
    "x-batch-lines-total",
    "x-incomplete",
    "x-last-line",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-request-id",
    "x-should-retry",
)
# Seconds for which a browser may keep the answer to a preflight request; Chromium's most.
MAX_AGE = 7_200


def options(origins: Sequence[str]) -> dict[str, Any]:
    """Starlette's options for these origins.

    A page may send any header, since the SDKs send some of their own. No cookies: a caller is known
    by its key alone.
    """
    return {
        "allow_origins": list(origins),
        "allow_methods": METHODS,
        "allow_headers": ["*"],
        "expose_headers": EXPOSED,
        "max_age": MAX_AGE,
    }
