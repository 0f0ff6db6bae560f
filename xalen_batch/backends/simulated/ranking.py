"""The simulated reranker's scores: BM25 over the documents of the request, squashed to 0..1."""

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from xalen_batch.backends.simulated.labels import words_of

K1, B = 1.2, 0.75
_STOP = frozenset(
    words_of(
        "a an and are as at be but by can do does for from had has have how i if in is it its me my"
        " no not of on or our so that the their them then there this to was we what when where"
        " which who why will with you your"
    )
)
_ENDINGS = (
    "ations",
    "ation",
    "ments",
    "ment",
    "ings",
    "ing",
    "ies",
    "ied",
    "ers",
    "er",
    "ed",
    "es",
    "s",
    "ly",
    "e",
    "y",
)


def relevance(query: str, documents: Sequence[str]) -> list[float]:
    """A score between 0 and 1 for each document, higher for more relevant."""
    asked = list(dict.fromkeys(stems(query)))
    counts = [_counted(document) for document in documents]
    lengths = [max(1, counter.total()) for counter in counts]
    average = sum(lengths) / max(1, len(lengths))
    weights = {
        stem: _rarity(sum(stem in counter for counter in counts), len(counts)) for stem in asked
    }
    most = sum(weights.values()) * (K1 + 1) or 1.0
    return [
        _squash(
            sum(
                weight * _saturation(counter[stem], length / average)
                for stem, weight in weights.items()
            )
            / most
        )
        for counter, length in zip(counts, lengths, strict=True)
    ]


@lru_cache(maxsize=512)
def _counted(document: str) -> Counter[str]:
    # Cached, since clients often send the same corpus with each query.
    return Counter(stems(document))


def stems(text: str) -> list[str]:
    """The stems of the words of a text that carry meaning."""
    return [_stem(word) for word in words_of(text) if word not in _STOP]


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if len(word) - len(ending) >= 3 and word.endswith(ending):
            return word[: -len(ending)]
    return word


def _rarity(having: int, documents: int) -> float:
    return math.log(1 + (documents - having + 0.5) / (having + 0.5))


def _saturation(count: int, relative_length: float) -> float:
    return count * (K1 + 1) / (count + K1 * (1 - B + B * relative_length)) if count else 0.0


def _squash(share: float) -> float:
    """Map a share of the best possible score (0..1) to a score like a cross-encoder's sigmoid."""
    return round(1 / (1 + math.exp(4.5 - 13 * share)), 6)
