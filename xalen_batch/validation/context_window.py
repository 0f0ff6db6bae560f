"""Whether a request can fit its model's context window.

No tokenizer makes more tokens than a text has bytes, so a line that is shorter in bytes than the
window fits, and most are. Only longer ones are counted: by the model's own tokenizer where it is
installed, else by an estimate that is taken as low as it can be wrong, since a prompt that fits
must never be refused.
"""

from collections.abc import Iterable

from xalen_batch.backends import tokens
from xalen_batch.catalog import Model
from xalen_batch.validation import bodies
from xalen_batch.validation.bodies import ChatRequest, Misfit, Request, RerankRequest

# `tokens.count` is up to 70 % too high on Japanese and Korean.
LEAST_SHARE = 0.55


def overflow(request: Request, model: Model, size: int) -> Misfit | None:
    """What does not fit, for a request whose line has `size` bytes; None when it fits, or may."""
    if size <= model.context_window:
        return None
    if isinstance(request, RerankRequest):
        return _ranking_overflow(request, model, "body.documents[{}]")
    if not model.is_reranker:
        return _chat_overflow(request, model)
    ranking = bodies.ranking(request)
    return _ranking_overflow(ranking, model, "body.messages") if ranking else None


def _chat_overflow(chat: ChatRequest, model: Model) -> Misfit | None:
    texts = [message.text for message in chat.messages]
    if sum(map(tokens.most, texts)) <= model.context_window:
        return None
    counted, is_exact = _count(texts, model)
    if counted <= model.context_window:
        return None
    return Misfit(
        "body.messages",
        f"The messages have {_tokens(counted, is_exact)}, and {_window(model)} Shorten them.",
    )


def _ranking_overflow(request: RerankRequest, model: Model, param: str) -> Misfit | None:
    """Every document is read together with the query, each pair on its own."""
    room = model.context_window - tokens.most(request.query)
    long = [(index, text) for index, text in enumerate(request.texts) if tokens.most(text) > room]
    if not long:
        return None
    asked, is_exact = _count([request.query], model)
    for index, text in long:
        counted = asked + _count([text], model)[0]
        if counted > model.context_window:
            return Misfit(
                param.format(index),
                f"The query and document {index} have {_tokens(counted, is_exact)}, and"
                f" {_window(model)} Shorten the document, or cut it in several.",
            )
    return None


def _count(texts: Iterable[str], model: Model) -> tuple[int, bool]:
    """Tokens that these texts have at least, and whether that is their exact number."""
    if exact := tokens.exact_counter(model):
        return sum(map(exact, texts)), True
    # No word shares a token with the next one, so there are no fewer tokens than words.
    return (
        sum(max(int(tokens.count(text) * LEAST_SHARE), len(text.split())) for text in texts),
        False,
    )


def _tokens(counted: int, is_exact: bool) -> str:
    return f"{counted:,} tokens" if is_exact else f"at least {counted:,} tokens by a low estimate"


def _window(model: Model) -> str:
    return f"the context window of {model.id} is {model.context_window:,} tokens."
