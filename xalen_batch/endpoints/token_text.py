"""Texts of embeddings and completions: one or several, each a string or the token ids of one."""

from typing import Annotated

from msgspec import Meta

from xalen_batch.endpoints.tokens import PieceCounter

TokenId = Annotated[int, Meta(ge=0, le=2**63 - 1)]
TokenText = str | list[TokenId]
# A text, or a list of texts. A list of token ids is one text.
TokenTexts = (
    str
    | Annotated[
        list[str | TokenId | Annotated[list[TokenId], Meta(min_length=1)]], Meta(min_length=1)
    ]
)


def texts_of(given: TokenTexts) -> list[TokenText]:
    """The texts, one by one. Raises ValueError if a list mixes strings and token ids."""
    if isinstance(given, str):
        return [given]
    kinds = {type(each) for each in given}
    if len(kinds) > 1:
        raise ValueError("mixes strings, token ids and lists of token ids. Send one of them.")
    return [given] if kinds == {int} else given  # type: ignore[list-item, return-value]


def count(text: TokenText, counter: PieceCounter) -> int:
    """The tokens of a text; of token ids, their number."""
    return counter(text) if isinstance(text, str) else len(text)
