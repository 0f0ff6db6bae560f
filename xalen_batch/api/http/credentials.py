"""The header of a request that has its API key."""

from collections.abc import Iterable

Headers = list[tuple[bytes, bytes]]

# Headers of other APIs that hold the bare key: Azure's, and Anthropic's.
BARE = (b"api-key", b"x-api-key")


def as_bearer(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The headers, with a bare key as `Authorization: Bearer`.

    An Authorization header that is there already counts alone.
    """
    found = list(headers)
    bare = b""
    for name, value in found:
        if name == b"authorization":
            return found
        if name in BARE:
            bare = bare or value
    return [*found, (b"authorization", b"Bearer " + bare)] if bare else found
