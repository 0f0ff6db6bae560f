"""What the mock model server does: given on the command line, changed by `POST /control`."""

from typing import Any

import msgspec


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Times are seconds, sizes bytes.

    latency: of every answer; the median where `sigma` > 0 makes it lognormal (request n has the same latency in every run).
    answer_bytes: about how long a chat answer's body is.
    slots: at most so many requests are served at a time; `queue` more wait, and the rest is answered 429 at once.
    requests_per_minute: more are answered 429 at once; a second's worth may come at a time.
    retry_after: what a 429 asks for, whole seconds.
    doubles_at: latency grows with the requests in service, as a batching server's does, and is twice as long at so many.
    prefix_blocks: prompts are cached in so many blocks of 64 bytes; an answer takes `token_latency` more for
        each prompt token that was not in the cache. Embeddings take it for each token.
    """

    latency: float = 0.0
    sigma: float = 0.0
    seed: int = 1
    answer_bytes: int = 700
    slots: int | None = None
    queue: int = 0
    requests_per_minute: int | None = None
    retry_after: int = 1
    doubles_at: int | None = None
    prefix_blocks: int | None = None
    token_latency: float = 0.0

    @property
    def is_immediate(self) -> bool:
        """Whether every request is answered the moment it has arrived."""
        return (
            not self.latency
            and self.slots is None
            and self.requests_per_minute is None
            and self.prefix_blocks is None
        )


def changed(options: Options, changes: dict[str, Any]) -> Options:
    """`options` with some fields changed. Raises msgspec.ValidationError for what is no option."""
    return msgspec.convert({**msgspec.to_builtins(options), **changes}, Options)
