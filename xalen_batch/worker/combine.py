"""Combine lines of embeddings into one request, and split its answer. Pure, but for `Combiner`.

A server embeds a few dozen short texts in one pass, and most of the cost of a short line is its
request. docs/decisions/0056 has the rules.
"""

from collections.abc import Sequence

import msgspec
from msgspec import Raw

from xalen_batch import log
from xalen_batch.backends.contract import Answered, Refused, Request
from xalen_batch.endpoints import token_text, tokens
from xalen_batch.endpoints.names import EMBEDDINGS
from xalen_batch.endpoints.token_text import TokenTexts
from xalen_batch.endpoints.usage import INPUT_KEYS, Usage, standard
from xalen_batch.worker.fair_queue import FairQueue
from xalen_batch.worker.work import Entry, Part

logger = log.get(__name__)

# Most tokens of a combined request, by our count. Beyond that a server's time is the model's.
MOST_TOKENS = 16_384
# The share of the last request in the mean of lines per request.
LEARNING = 1 / 8
# Answers in a row that cannot be split, after which lines are no longer combined.
MOST_UNSPLIT = 3

_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_input = msgspec.json.Decoder(TokenTexts).decode
_raws = msgspec.json.Decoder(list[Raw]).decode
_items = msgspec.json.Decoder(list[dict[str, Raw]]).decode
_INVALID = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError)


def part_of(request: Request) -> Part | None:
    """The parts that a request has in a combined one; None if it is sent as it is."""
    if request.endpoint != EMBEDDINGS:
        return None
    try:
        fields = _fields(request.body)
        raw = fields.pop("input")
        given = _input(raw)
        texts = token_text.texts_of(given)
        inputs = _raws(raw) if texts is given else [raw]
    except (*_INVALID, KeyError):
        # The backend refuses it.
        return None
    # The name of an end user has no influence on a vector.
    fields.pop("user", None)
    read = sum(token_text.count(text, tokens.count) for text in texts)
    return Part(fields, inputs, read, is_text=isinstance(texts[0], str))


def request_of(entry: Entry) -> Request:
    """The request of an entry: that of its line, or one for the inputs of all its lines."""
    first = entry.lines[0].request
    if not entry.is_combined:
        return first
    inputs = [each for part in entry.parts for each in part.inputs]
    body = msgspec.json.encode({**entry.parts[0].fields, "input": inputs})
    return Request(EMBEDDINGS, body, first.request_id)


def split(answer: Answered, parts: Sequence[Part]) -> list[Answered] | None:
    """The answer of each part: its data, numbered from 0, and its share of the usage.

    None if the answer does not have one item for each input.
    """
    try:
        fields = _fields(answer.body)
        items = _sorted(_items(fields["data"]))
    except (*_INVALID, KeyError):
        return None
    if len(items) != sum(len(part.inputs) for part in parts):
        return None
    used = shares(answer.usage.input_tokens, [part.tokens for part in parts])
    found, start = [], 0
    for part, read in zip(parts, used, strict=True):
        end = start + len(part.inputs)
        own = [{**item, "index": index} for index, item in enumerate(items[start:end])]
        start = end
        usage = Usage(read, counted=answer.usage.counted)
        body = {**fields, "data": own, "usage": standard(usage, INPUT_KEYS)}
        found.append(Answered(answer.status, msgspec.json.encode(body), usage))
    return found


def _sorted(items: list[dict[str, Raw]]) -> list[dict[str, Raw]]:
    """The items by their index, or in the order in which they came if none has one.

    Raises ValueError unless the indexes are the numbers from 0 on.
    """
    if not any("index" in item for item in items):
        return items
    by_index = {int(bytes(item["index"])): item for item in items}
    if by_index.keys() != set(range(len(items))):
        raise ValueError("the indexes are not those of the inputs")
    return [by_index[index] for index in range(len(items))]


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """`total` in proportion to the weights, as whole numbers that sum to it.

    What rounding down leaves goes, one each, to the parts with the largest remainders, of equals to
    the first. Weights that are all 0 count as equal.
    """
    whole = sum(weights)
    if not whole:
        weights, whole = [1] * len(weights), len(weights)
    found = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda n: -(total * weights[n] % whole))
    for number in by_remainder[: total - sum(found)]:
        found[number] += 1
    return found


def halves(entry: Entry) -> list[Entry]:
    """Two entries with the lines of a combined one. Neither is combined again."""
    middle = (len(entry.lines) + 1) // 2
    return [
        Entry(
            entry.work,
            entry.lines[cut],
            parts=entry.parts[cut],
            first=entry.first,
            first_at=entry.first_at,
        )
        for cut in (slice(None, middle), slice(middle, None))
    ]


class Combiner:
    """Combines the waiting lines of a lane; event loop thread only, except `lines` (any thread).

    `most`: inputs of a combined request; 1: lines are not to be combined.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        # The mean of lines per request, as far as bounds and parameters decided it.
        self.lines = float(most)
        self._unsplit = 0

    def fill(self, entry: Entry, waiting: FairQueue[Entry]) -> None:
        """Move the lines that wait behind an entry into it, as far as they fit.

        They are of the same work, were never sent, and have the same parameters. Nothing is added
        to an entry that was sent before.
        """
        if entry.is_probe or entry.first:
            return
        room = _Room(entry, self.most)
        beside = waiting.beside(entry, room.takes) if room.is_open else []
        for other in beside:
            entry.lines = (*entry.lines, *other.lines)
            entry.parts = (*entry.parts, *other.parts)
        if not room.is_open:
            self.lines += (len(entry.lines) - self.lines) * LEARNING

    def split(self, entry: Entry, outcome: Answered | Refused) -> list[Answered] | None:
        """The answer of each line; None for a refusal, and for an answer that cannot be split.

        After MOST_UNSPLIT such answers in a row, lines are no longer combined.
        """
        if isinstance(outcome, Refused):
            return None
        found = split(outcome, entry.parts)
        self._unsplit = 0 if found else self._unsplit + 1
        if self._unsplit == MOST_UNSPLIT:
            self.most, self.lines = 1, 1.0
            logger.warning("backend.combines_no_inputs", batch_id=entry.source.batch_id)
        return found


class _Room:
    """The room for further lines in the request of an entry."""

    def __init__(self, entry: Entry, most: int) -> None:
        self._work = entry.work
        self._part = _read(entry)
        self._inputs, self._tokens = most, MOST_TOKENS
        # False once a bound or another request has closed it.
        self.is_open = self._part is not None and self._take(self._part)

    def takes(self, other: Entry) -> bool:
        """Whether the line was taken."""
        if other.work is not self._work or other.is_probe or other.first:
            return False
        part = _read(other)
        self.is_open = (
            part is not None
            and self._part is not None
            and part.is_like(self._part)
            and self._take(part)
        )
        return self.is_open

    def _take(self, part: Part) -> bool:
        self._inputs -= len(part.inputs)
        self._tokens -= part.tokens
        return self._inputs >= 0 and self._tokens >= 0


def _read(entry: Entry) -> Part | None:
    """The part of an entry of one line, read once."""
    if not entry.parts:
        part = part_of(entry.lines[0].request)
        if part is None:
            return None
        entry.parts = (part,)
    return entry.parts[0]
