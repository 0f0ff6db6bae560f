"""Our own token counts, for estimates, answers without usable usage, and the simulated models.

`count` is an estimate that needs no vocabulary: one token per match of `PIECES`. Against the Tekken
tokenizer of Mistral Small 3.1 it is off by less than 5 % on English prose, source code and JSON, by
4 to 12 % on French, German, Russian, Arabic and Chinese, up to 70 % too high on Japanese and
Korean, and too low on emoji. It never exceeds `most`, the upper bound for any byte-level tokenizer.
`exact_counter` returns the real tokenizer if the extra `tokenizer` is installed.
"""

import re
import string
from binascii import unhexlify
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

import msgspec

# Scripts without spaces: about a token a character.
_DENSE = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u2e80-\u9fff"
    "\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)
PIECES = re.compile(
    "[a-zA-Z]{1,8}"  # a word or a piece of one; the space before it is part of the token
    r"|\d"
    f"|[{_DENSE}]"
    rf"|[^\W\d_a-zA-Z{_DENSE}]{{1,3}}"  # other alphabets
    r"|[!-/:-@\[-`{-~]{1,2}"  # ASCII punctuation
    r"|\n+[ \t]*|\t+| {2,}"
    r"|[^\w\s]"
)

# The same count without a regex, for ASCII. No piece mixes ASCII with other characters, and an
# ASCII piece is part of a run of one kind: up to 8 letters, up to 2 punctuation marks, all newlines
# and the blanks behind them, 2 or more spaces, or a single character. A text becomes an integer
# with a hexadecimal digit for each character, and each kind is one bit of it (a newline two), so
# integer arithmetic finds the runs. `\r` and other blanks are 0.
_LETTER, _MARK, _SPACE, _SINGLE = 1, 2, 4, 8
_NEWLINE = _SINGLE | _SPACE


def _kind(character: str) -> int:
    if character.isalpha():
        return _LETTER
    if character in string.punctuation:
        return _MARK
    if character.isspace():
        return {" ": _SPACE, "\n": _NEWLINE}.get(character, 0)
    return _SINGLE


_KINDS = "".join(f"{_kind(chr(byte)):x}" for byte in range(128)).encode().ljust(256, b"0")
_NOT_ASCII = b" " * 128 + bytes(range(128, 256))
_NEWLINES, _TABS, _SPACES = re.compile(r"\n+[ \t]*"), re.compile(r"\t+"), re.compile(r" {2,}")


class _Masks(NamedTuple):
    """Integers with the bits of some kinds in each digit."""

    letters: int
    marks: int
    spaces: int
    singles: int
    letters_or_marks: int
    # Kinds with a piece for each character, or for each run.
    counted: int


def _masks(size: int) -> _Masks:
    """The masks of a text of this many characters."""
    runs = _LETTER | _MARK
    kinds = (_LETTER, _MARK, _SPACE, _SINGLE, runs, runs | _SINGLE)
    # Two digits are a byte.
    whole = (bytes([kind << 4 | kind]) * (size + 1 >> 1) for kind in kinds)
    return _Masks(*(int.from_bytes(each, "big") for each in whole))


# Characters of a text up to which its masks are made once. `&` costs as much as its shorter
# operand.
_MASKED = 64 * 1024
_MASKS = _masks(_MASKED)

# Tokens that a chat template adds: role and separators of each message, and the answer's opening.
PER_MESSAGE = 4
PER_CHAT = 3
# Tokens of the separators between a query and a document.
PER_PAIR = 4
# Tokens of a picture at the usual resolution.
PER_IMAGE = 1024

# A recording at a usual bit rate has 16 KB and about 16 tokens per second.
BYTES_PER_AUDIO_TOKEN = 1024
# A document or a film counts as one picture per this many bytes: about a page, or a sampled frame.
BYTES_PER_PICTURE = 64 * 1024
AUDIO, PICTURES = ("input_audio", "audio_url"), ("file", "video_url")
# The keys of content parts that hold media, in base64 or by URL or id.
MEDIA = ("image_url", *AUDIO, *PICTURES)

# Bytes of an input line that count as one token of an account's quota.
BYTES_PER_TOKEN = 4

PieceCounter = Callable[[str], int]


def enqueued(size: int) -> int:
    """Tokens by which a line of `size` bytes counts in its account's quota of enqueued tokens."""
    return -(-size // BYTES_PER_TOKEN)


def count(text: str) -> int:
    """Estimate the tokens of a text: the number of `PIECES` matches, for a fraction of the CPU."""
    data = text.encode("utf-8", "surrogatepass")
    size = len(data)
    masks = _MASKS if size <= _MASKED else _masks(size)
    digits = data.translate(_KINDS)
    kinds = int.from_bytes(unhexlify(digits + b"0" if size & 1 else digits), "big")
    # The bits of characters of the same kind as the one before. The other bits of `kinds` are the
    # first character of each run.
    more = kinds & kinds >> 4
    firsts = kinds ^ more & masks.letters_or_marks
    if "\n" in text:
        firsts ^= more & more << 1 & masks.singles
    pieces = (firsts & masks.counted).bit_count()
    pieces += _long_runs(more, masks)
    if "\t" in text:
        pieces += _blanks(text)
    elif more & masks.spaces:
        pieces += _wide_spaces(kinds, masks)
    if not text.isascii():
        foreign = b" ".join(data.translate(_NOT_ASCII).split())
        pieces += len(PIECES.findall(foreign.decode("utf-8", "surrogatepass")))
    return pieces


def _long_runs(more: int, masks: _Masks) -> int:
    """The second and later pieces of runs of letters and of marks; `more` as in `count`."""
    # Bits behind 2, 4 and 8 others in a row.
    two = more & more >> 4
    four = two & two >> 8
    eight = four & four >> 16 & masks.letters
    if four & masks.marks or eight & eight >> 32:
        # Runs of 5 marks or 17 letters have more than two pieces.
        inside = f"{more:x}"
        return inside.count("1" * 8) + inside.count("2" * 2)
    second = eight | two & masks.marks
    return (second ^ second & second >> 4).bit_count()


def _wide_spaces(kinds: int, masks: _Masks) -> int:
    """The number of runs of two spaces or more that do not follow a newline, which includes them.

    For a text without tabs; `kinds` as in `count`.
    """
    spaces = (kinds ^ kinds & kinds >> 1) & masks.spaces
    newlines = kinds & kinds << 1 & masks.singles
    # A run begins behind a character that is neither of both. Each bit moves to the next digit.
    firsts = spaces ^ spaces & (spaces >> 4 | newlines >> 5)
    return (firsts & spaces << 4).bit_count()


def _blanks(text: str) -> int:
    """The pieces of tabs and of two spaces or more in a text, but for those behind newlines."""
    # `\r` is in no piece, so it separates the text before and after.
    rest = _NEWLINES.sub("\r", text)
    return len(_TABS.findall(rest)) + len(_SPACES.findall(rest))


def most(text: str) -> int:
    """Upper bound of a text's tokens for any byte-level tokenizer: its bytes in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def cut(text: str, limit: int) -> str:
    """The longest prefix of a text that counts at most `limit` tokens."""
    last = next(islice(PIECES.finditer(text), limit, None), None)
    return text if last is None else text[: last.start()]


def count_chat(messages: Sequence[Any], *, tools: Any = None, counter: PieceCounter = count) -> int:
    """Prompt tokens of a chat: contents, tool calls, names, tools, and those of the template."""
    total = PER_CHAT + PER_MESSAGE * len(messages)
    for message in messages:
        if isinstance(message, Mapping):
            total += sum(
                _count_value(value, counter) for key, value in message.items() if key != "role"
            )
    return total + (_count_value(tools, counter) if tools else 0)


def count_texts(texts: Sequence[str], *, counter: PieceCounter = count) -> int:
    """Prompt tokens of a chat whose messages have only these texts, as `count_chat` counts them."""
    return PER_CHAT + PER_MESSAGE * len(texts) + sum(map(counter, texts))


def count_rerank(query: str, documents: Iterable[Any], *, counter: PieceCounter = count) -> int:
    """Prompt tokens of a rerank: the query is read again with each document.

    Documents are strings or `{text}`.
    """
    per_document = counter(query) + PER_PAIR
    return sum(per_document + counter(text_of(document)) for document in documents)


def count_json(value: Any) -> int:
    """Tokens of a value as JSON."""
    return count(msgspec.json.encode(value).decode("utf-8", "replace"))


def text_of(document: Any) -> str:
    """The text of a rerank document, which is a string or an object with `text`."""
    text = document.get("text") if isinstance(document, Mapping) else document
    return text if isinstance(text, str) else ""


def _count_value(value: Any, counter: PieceCounter) -> int:
    if isinstance(value, str):
        return counter(value)
    if isinstance(value, list):
        return sum(_count_part(part, counter) for part in value)
    return counter(msgspec.json.encode(value).decode()) if value else 0


def _count_part(part: Any, counter: PieceCounter) -> int:
    if isinstance(part, Mapping):
        if (media := next((kind for kind in MEDIA if kind in part), None)) is not None:
            return _count_media(media, part[media])
        if isinstance(part.get("text"), str):
            return counter(part["text"])
    return _count_value(part, counter)


def _count_media(kind: str, media: Any) -> int:
    """Tokens of a picture, recording, document or film; by URL or id, those of a small one."""
    texts = media.values() if isinstance(media, Mapping) else [media]
    # Base64 has four characters for three bytes.
    size = max((len(text) * 3 // 4 for text in texts if isinstance(text, str)), default=0)
    if kind in AUDIO:
        return max(1, size // BYTES_PER_AUDIO_TOKEN)
    return PER_IMAGE * (1 + size // BYTES_PER_PICTURE) if kind in PICTURES else PER_IMAGE


@cache
def exact_counter(owned_by: str) -> PieceCounter | None:
    """An owner's own tokenizer, or None if the extra `tokenizer` is absent or lacks it."""
    if owned_by != "mistralai":
        return None
    try:
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer
    except ImportError:
        return None
    from importlib import resources

    with resources.as_file(
        resources.files("mistral_common").joinpath("data", "tekken_240911.json")
    ) as path:
        tokenizer = Tekkenizer.from_file(str(path))
    return lambda text: len(tokenizer.encode(text, bos=False, eos=False))
