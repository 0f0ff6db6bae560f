"""Whether a request can fit its model's context window.

A byte-level tokenizer makes at most one token of each byte, so a line with no more bytes than the
window has tokens always fits. Only longer requests are counted: with the model's own tokenizer if
it is installed, otherwise with an estimate scaled down to its largest known error, because a
request that fits must never be refused.
"""

from collections.abc import Iterable

from xalen_batch.backends import tokens
from xalen_batch.catalog import Model
from xalen_batch.validation import bodies
from xalen_batch.validation.bodies import ChatRequest, InvalidBody, Request, RerankRequest

# The lowest ratio of real tokens to `tokens.count`, which is up to 70 % too high on Japanese and
# Korean.
LEAST_SHARE = 0.55


def overflow(request: Request, model: Model, size: int) -> InvalidBody | None:
    """The part of a request that exceeds the context window; None if all fits, or may fit.

    `size`: the length of the request's line in bytes.
    """
    if size <= model.context_window:
        return None
    if isinstance(request, RerankRequest):
        return _ranking_overflow(request, model, "body.documents[{}]")
    if not model.is_reranker:
        return _chat_overflow(request, model)
    ranking = bodies.ranking(request)
    return _ranking_overflow(ranking, model, "body.messages") if ranking else None


def _chat_overflow(chat: ChatRequest, model: Model) -> InvalidBody | None:
    texts = [message.text for message in chat.messages]
    if sum(map(tokens.most, texts)) <= model.context_window:
        return None
    counted, is_exact = _count(texts, model)
    if counted <= model.context_window:
        return None
    return InvalidBody(
        "body.messages",
        f"The messages have {_tokens(counted, is_exact)}, and {_window(model)} Shorten them.",
    )


def _ranking_overflow(request: RerankRequest, model: Model, param: str) -> InvalidBody | None:
    """A reranker reads pairs: each document together with the query has to fit the window."""
    room = model.context_window - tokens.most(request.query)
    long = [(index, text) for index, text in enumerate(request.texts) if tokens.most(text) > room]
    if not long:
        return None
    asked, is_exact = _count([request.query], model)
    for index, text in long:
        counted = asked + _count([text], model)[0]
        if counted > model.context_window:
            return InvalidBody(
                param.format(index),
                f"The query and document {index} have {_tokens(counted, is_exact)}, and"
                f" {_window(model)} Shorten the document, or cut it in several.",
            )
    return None


def _count(texts: Iterable[str], model: Model) -> tuple[int, bool]:
    """A lower bound of the tokens in these texts, and whether it is their exact number."""
    exact = tokens.exact_counter(model)
    if exact:
        return sum(map(exact, texts)), True
    # No token spans two words, so the number of words is a lower bound too.
    bounds = (max(int(tokens.count(text) * LEAST_SHARE), len(text.split())) for text in texts)
    return sum(bounds), False


def _tokens(counted: int, is_exact: bool) -> str:
    return f"{counted:,} tokens" if is_exact else f"at least {counted:,} tokens by a low estimate"


def _window(model: Model) -> str:
    return f"the context window of {model.id} is {model.context_window:,} tokens."
