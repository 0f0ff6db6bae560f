"""Whether a prompt can fit its model's context window.

A byte-level tokenizer makes at most one token of each byte, so a line with no more bytes than the
window has tokens always fits. Only longer requests are counted: with the model's own tokenizer if
it is installed, otherwise with an estimate scaled down to its largest known error, because a
request that fits must never be refused.
"""

from collections.abc import Iterable
from typing import NamedTuple

from xalen_batch.endpoints import tokens
from xalen_batch.endpoints.token_text import TokenText

# The lowest ratio of real tokens to `tokens.count`, which is up to 70 % too high on Japanese and
# Korean.
LEAST_SHARE = 0.55


class Window(NamedTuple):
    """The context window of a model: `size` tokens. `owned_by` tells which tokenizer counts."""

    model: str
    owned_by: str
    size: int

    def overflow(self, texts: Iterable[str]) -> str | None:
        """The tokens of texts that exceed the window, in words; None if they fit, or may fit."""
        texts = list(texts)
        if sum(map(tokens.most, texts)) <= self.size:
            return None
        counted, is_exact = self._count(texts)
        return self._excess(counted, "" if is_exact else " by a low estimate")

    def overflow_of(self, text: TokenText) -> str | None:
        """The same for one text, which may be token ids."""
        return self.overflow([text]) if isinstance(text, str) else self._excess(len(text))

    def _excess(self, counted: int, source: str = "") -> str | None:
        if counted <= self.size:
            return None
        shown = f"{'at least ' if source else ''}{counted:,} tokens{source}"
        return f"{shown}, and the context window of {self.model} is {self.size:,} tokens."

    def _count(self, texts: list[str]) -> tuple[int, bool]:
        """A lower bound of the tokens in these texts, and whether it is their exact number."""
        exact = tokens.exact_counter(self.owned_by)
        if exact:
            return sum(map(exact, texts)), True
        # No token spans two words, so the number of words is a lower bound too.
        bounds = (max(int(tokens.count(text) * LEAST_SHARE), len(text.split())) for text in texts)
        return sum(bounds), False
