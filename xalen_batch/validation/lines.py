"""Reading an input file: every line is either good, or a fault that says what to do.

The file is read as a stream: a chunk of it is in memory at a time, or one long line.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple, cast

import msgspec
import orjson

from xalen_batch.catalog import ENDPOINTS, Endpoint, Model, endpoint_of
from xalen_batch.config import Settings, settings
from xalen_batch.jsonl import Block, Span, blocks
from xalen_batch.validation import bodies, context_window, json_errors, prefix_order
from xalen_batch.validation.bodies import MAX_CUSTOM_ID, Misfit, Request, UsualChat, UsualLine
from xalen_batch.validation.errors import TOO_MANY, Fault, quoted
from xalen_batch.validation.prefix_order import Prompt

UTF8_BOM = b"\xef\xbb\xbf"
# First bytes of what is not UTF-8 text; longer ones first, since one begins like another.
FOREIGN = {
    b"\xff\xfe\x00\x00": "UTF-32LE",
    b"\x00\x00\xfe\xff": "UTF-32BE",
    b"{\x00\x00\x00": "UTF-32LE",
    b"\x00\x00\x00{": "UTF-32BE",
    b"\xff\xfe": "UTF-16LE",
    b"\xfe\xff": "UTF-16BE",
    b"{\x00": "UTF-16LE",
    b"\x00{": "UTF-16BE",
}
# Keys that say what is run, of which a line usually has one each; what has more may have one of
# them twice.
KEYS = re.compile(rb'"(?:custom_id|body|model|messages|query|documents)"')
# Those of them that every chat line has.
CHAT_KEYS = 4
OPENING, CLOSING = b"{}"
# A letter or `_` written as its code, which nobody does: it may hide such a key.
HIDDEN_LETTER = re.compile(rb"\\u00[4-7]")
# Lines that a file may have for each request that a batch may have. Blank ones cost time too.
LINES_PER_REQUEST = 10
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
}


class GoodLine(NamedTuple):
    """A line that can run, and what is looked at in its request, typed."""

    span: Span
    custom_id: str
    endpoint: Endpoint
    model: str
    request: Request
    block: Block

    @property
    def raw(self) -> bytes:
        """The line as it is."""
        return self.block.line(self.span)

    @property
    def body(self) -> dict[str, Any]:
        """The request as it is."""
        body: dict[str, Any] = orjson.loads(self.raw)["body"]
        return body

    @property
    def prompt(self) -> Prompt:
        """What a chat model reads."""
        if isinstance(self.request, UsualChat):
            return [message.content for message in self.request.messages]
        return prefix_order.prompt(self.body)


def scan(
    chunks: Iterable[bytes],
    *,
    endpoint: str | None,
    models: Mapping[str, Model],
    limits: Settings | None = None,
) -> Iterator[GoodLine | Fault]:
    """Every line that is not blank, in order; a fault without a line is about the file and ends it.

    `endpoint` None: the first line's url is taken for the whole file. `limits` None: those of the
    settings.
    """
    stream = iter(chunks)
    head = b""
    for chunk in stream:
        head += chunk
        if len(head) >= 4:
            break
    if fault := _foreign(head):
        yield fault
        return
    start = len(UTF8_BOM) if head.startswith(UTF8_BOM) else 0
    found = None
    for found in Reader(endpoint, models, limits).read(chain([head[start:]], stream), start=start):
        yield found
    if found is None:
        yield Fault("empty_file", "The file has no requests. Write one JSON object on each line.")


def _foreign(head: bytes) -> Fault | None:
    for magic, encoding in FOREIGN.items():
        if head.startswith(magic):
            remedy = f"Save it as UTF-8: iconv -f {encoding} -t UTF-8 input.jsonl > utf8.jsonl"
            return Fault("invalid_encoding", f"The file is {encoding}, not UTF-8. {remedy}")
    for magic, name in COMPRESSED.items():
        if head.startswith(magic):
            return Fault(
                "invalid_encoding",
                f"The file is compressed ({name}), not JSONL text. Decompress it before you"
                " upload it.",
            )
    return None


def too_long(span: Span, limit: int) -> Fault:
    """A line of more than `limit` bytes."""
    message = (
        f"The line has {span.length:,} bytes; the most is {limit:,}. Shorten the request, or refer"
        " to large content by URL."
    )
    return Fault("line_too_long", message, span.line_no)


class Reader:
    """Checks line after line of a file; knows the ids it has seen, how many requests there were,
    and the number of the last line.
    """

    def __init__(
        self, endpoint: str | None, models: Mapping[str, Model], limits: Settings | None = None
    ) -> None:
        self.endpoint = endpoint
        self.models = models
        self.seen: dict[str, int] = {}
        self.count = self.last_line = 0
        limits = limits or settings()
        self.longest, self._most = limits.max_line_bytes, limits.max_batch_lines

    def read(self, chunks: Iterable[bytes], *, start: int = 0) -> Iterator[GoodLine | Fault]:
        """Every line that is not blank.

        `start`: where in the file the chunks begin; lines are numbered from there.
        """
        for block in blocks(chunks, longest=self.longest, start=start):
            for found in self.check(block):
                yield found
                if isinstance(found, Fault) and found.code == TOO_MANY:
                    return
            self.last_line = block.spans[-1].line_no

    def check(self, block: Block) -> Iterator[GoodLine | Fault]:
        """Every line of it that is not blank.

        Behind a fault that says TOO_MANY nothing is to be read.
        """
        values = _usual_values(block)
        for number, span in enumerate(block.spans):
            usual = self._usual(block, span, values[number]) if values else None
            if found := usual or self._single(block, span):
                yield found

    def _usual(self, block: Block, span: Span, value: UsualLine) -> GoodLine | None:
        """A good line of the form that most have, at a fraction of the cost; None for all others,
        good or not.
        """
        chat, custom_id = value.body, value.custom_id
        model = self.models.get(chat.model)
        # The canonical spelling, which nearly every line has, costs one comparison.
        if value.url != self.endpoint and endpoint_of(value.url) != self.endpoint:
            return None
        if (
            self.endpoint is None
            or model is None
            or self.endpoint not in model.endpoints
            or chat.stream
        ):
            return None
        if (
            span.length > model.context_window
            or span.length > self.longest
            or self.count >= self._most
        ):
            return None
        if custom_id in self.seen or "\x00" in custom_id:
            return None
        self.seen[custom_id] = span.line_no
        self.count += 1
        return GoodLine(span, custom_id, self.endpoint, chat.model, chat, block)

    def _single(self, block: Block, span: Span) -> GoodLine | Fault | None:
        """Any line; None for a blank one."""
        is_long = block.data is None or span.length > self.longest
        raw = b"" if is_long else block.line(span)
        if not (is_long or raw.strip(b" \t\r")):
            if span.line_no < self._most * LINES_PER_REQUEST:
                return None
            message = (
                f"The file has {span.line_no:,} lines, most of them blank. Remove the blank lines."
            )
            return Fault(TOO_MANY, message, span.line_no)
        # It may be a neighbour that is of another form.
        values = (
            _usual_values(Block([span], block.data, block.start)) if len(block.spans) > 1 else None
        )
        if values and (usual := self._usual(block, span, values[0])):
            return usual
        self.count += 1
        if self.count > self._most:
            message = (
                f"The file has more than {self._most:,} requests, the most of one batch. Split it"
                " into several files."
            )
            return Fault(TOO_MANY, message, span.line_no)
        return too_long(span, self.longest) if is_long else self._any(block, span, raw)

    def _any(self, block: Block, span: Span, raw: bytes) -> GoodLine | Fault:
        line = span.line_no
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError:
            return json_errors.diagnose(raw, line)
        if not isinstance(value, dict):
            hint = "Each line must be an object with custom_id, method, url and body."
            return Fault(
                "invalid_json_line", f"The line is {_kind(value)}, not an object. {hint}", line
            )
        if fault := _hidden(raw, line) or self._id(value, line):
            return fault
        request = (
            self._address(value, line)
            or self._model(value, line)
            or self._request(value, line, len(raw))
        )
        if isinstance(request, Fault):
            return replace(request, custom_id=value["custom_id"])
        return GoodLine(
            span, value["custom_id"], cast(Endpoint, self.endpoint), request.model, request, block
        )

    def _id(self, value: dict[str, Any], line: int) -> Fault | None:
        custom_id = value.get("custom_id")
        if custom_id is None:
            return _missing(
                "custom_id",
                line,
                "Give each line an id of your own, such as request-1; the results carry it.",
            )
        if (
            not isinstance(custom_id, str)
            or not 0 < len(custom_id) <= MAX_CUSTOM_ID
            or "\x00" in custom_id
        ):
            wanted = f"a string of 1 to {MAX_CUSTOM_ID} characters, without NUL"
            shown = f"It is {quoted(custom_id)}" + (
                f", {len(custom_id):,} characters long" if isinstance(custom_id, str) else ""
            )
            return Fault(
                "invalid_custom_id", f"custom_id must be {wanted}. {shown}.", line, "custom_id"
            )
        first = self.seen.setdefault(custom_id, line)
        if first != line:
            message = (
                f"custom_id {quoted(custom_id)} is used on line {first} and again on line {line}."
                " Make it unique in the file."
            )
            return Fault("duplicate_custom_id", message, line, "custom_id")
        return None

    def _address(self, value: dict[str, Any], line: int) -> Fault | None:
        method, url = value.get("method"), value.get("url")
        if method is None:
            return _missing("method", line, "It is always POST.")
        if method != "POST":
            return Fault(
                "invalid_method", f"method must be POST. It is {quoted(method)}.", line, "method"
            )
        if url is None:
            return _missing("url", line, f"Set it to {self.endpoint or ENDPOINTS[0]}.")
        named = endpoint_of(url)
        self.endpoint = self.endpoint or named
        if named is None or named != self.endpoint:
            wanted = (
                f"the batch's endpoint, {self.endpoint}"
                if self.endpoint
                else f"one of {', '.join(ENDPOINTS)}"
            )
            return Fault("url_mismatch", f"url must be {wanted}. It is {quoted(url)}.", line, "url")
        return None

    def _model(self, value: dict[str, Any], line: int) -> Fault | None:
        body = value.get("body")
        if body is None:
            return _missing(
                "body", line, f"Put the request to {self.endpoint} there, as an object."
            )
        if not isinstance(body, dict):
            message = (
                f"body must be an object: the request to {self.endpoint}. It is {_kind(body)}."
            )
            return Fault("invalid_request", message, line, "body")
        name = body.get("model")
        if name is None:
            return _missing("body.model", line, f"Name one of: {', '.join(self._serving())}.")
        model = self.models.get(name) if isinstance(name, str) else None
        if model is None:
            return Fault(
                "model_not_found",
                f"There is no model {quoted(name)}. {self._suggestion(name)}",
                line,
                "body.model",
            )
        if self.endpoint not in model.endpoints:
            serves = (
                f"{model.id} does not serve {self.endpoint}, only {', '.join(model.endpoints)}."
            )
            instead = f"For {self.endpoint} use one of: {', '.join(self._serving())}."
            return Fault("model_not_found", f"{serves} {instead}", line, "body.model")
        return None

    def _request(self, value: dict[str, Any], line: int, size: int) -> Request | Fault:
        """`size`: the line's, in bytes."""
        request = bodies.fit(value["body"], cast(Endpoint, self.endpoint))
        if isinstance(request, Misfit):
            return Fault("invalid_request", request.message, line, request.param)
        if request.stream:
            message = "A batch has no stream to send. Leave stream out, or set it to false."
            return Fault("invalid_request", message, line, "body.stream")
        if excess := context_window.overflow(request, self.models[request.model], size):
            return Fault("context_length_exceeded", excess.message, line, excess.param)
        return request

    def _serving(self) -> list[str]:
        return [model.id for model in self.models.values() if self.endpoint in model.endpoints]

    def _suggestion(self, name: object) -> str:
        close = (
            difflib.get_close_matches(name[:100].lower(), self.models, n=3, cutoff=0.5)
            if isinstance(name, str)
            else []
        )
        return (
            f"Did you mean {' or '.join(close)}?"
            if close
            else f"Name one of: {', '.join(self._serving()[:20])}."
        )


def _hidden(raw: bytes, line: int) -> Fault | None:
    """What a good parse hides: nesting that a backend's parser refuses, and a key that is there
    twice.
    """
    # Deleting a byte finds it four times as fast as counting it: most of what a long line costs is
    # here.
    brackets = len(raw) - len(raw.replace(b"[", b"").replace(b"{", b""))
    if brackets > json_errors.MAX_DEPTH and json_errors.is_too_deep(raw):
        return json_errors.diagnose(raw, line)
    found = KEYS.findall(raw)
    if len(found) == len(set(found)) and not _hides_letters(raw, 0, len(raw)):
        return None
    if key := json_errors.twice(raw):
        message = (
            f"The key {quoted(key)} is there twice, and which one counts is anyone's guess. Remove"
            " one."
        )
        return Fault("invalid_json_line", message, line)
    return None


def _usual_values(block: Block) -> list[UsualLine] | None:
    """What is on each line, where all have the form that most have: nothing in them goes unread,
    and no key is there twice.
    """
    data, count = block.data, len(block.spans)
    if data is None:
        return None
    begin, end = block.ends
    try:
        values = bodies.usual_lines(memoryview(data)[begin:end])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    # A value that goes on on the next line is none here: within it, no `}` is followed by `{`.
    if count > 1 and not _all_in_braces(block):
        return None
    # So each line has a value at least, and each value each key: as many as that are one value in
    # each line, and one key in that.
    if len(KEYS.findall(data, begin, end)) != CHAT_KEYS * count or _hides_letters(data, begin, end):
        return None
    return values


def _all_in_braces(block: Block) -> bool:
    data, start = block.data or b"", block.start
    return all(
        length and data[offset - start] == OPENING and data[offset - start + length - 1] == CLOSING
        for _, offset, length in block.spans
    )


def _hides_letters(raw: bytes, begin: int, end: int) -> bool:
    # One byte is found ten times as fast as four, and those sooner than a pattern.
    if raw.find(b"\\", begin, end) < 0 or raw.find(b"\\u00", begin, end) < 0:
        return False
    return HIDDEN_LETTER.search(raw, begin, end) is not None


def _missing(param: str, line: int, remedy: str) -> Fault:
    return Fault("missing_required_parameter", f"{param} is missing. {remedy}", line, param)


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return {bool: "a boolean", str: "a string", list: "a list", dict: "an object"}.get(
        type(value), "a number"
    )
