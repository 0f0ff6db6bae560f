"""Checks an input file line by line: each line is a request that can run, or has a `Fault`.

The file is a stream: one chunk of it is in memory at a time, or one long line.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple, cast

import orjson

from xalen_batch.catalog import Model
from xalen_batch.config import Settings, settings
from xalen_batch.endpoints import operations
from xalen_batch.endpoints.form import Form, InvalidBody
from xalen_batch.endpoints.names import ENDPOINTS, Endpoint, endpoint_of
from xalen_batch.errors import quoted
from xalen_batch.jsonl import Block, Span, blocks
from xalen_batch.validation import fast_path, file_type, json_errors
from xalen_batch.validation.errors import DUPLICATE, OF_FILE, TOO_MANY, TOO_MANY_INPUTS, Fault
from xalen_batch.validation.fast_path import MAX_CUSTOM_ID, UsualLine
from xalen_batch.validation.file_type import UTF8_BOM

# A file may have this many lines for each request that a batch may have: blank lines cost time too.
LINES_PER_REQUEST = 10


class GoodLine(NamedTuple):
    """A line that can run; `request` is its body, as far as we read it."""

    span: Span
    custom_id: str
    endpoint: Endpoint
    model: str
    request: Form
    block: Block

    @property
    def raw(self) -> bytes:
        """The bytes of the line, without its line end."""
        return self.block.line(self.span)


def scan(
    chunks: Iterable[bytes],
    *,
    endpoint: str | None,
    models: Mapping[str, Model],
    limits: Settings | None = None,
) -> Iterator[GoodLine | Fault]:
    """Each line that is not blank, in file order, as a good line or a fault.

    A fault without a line number is about the whole file, and the last. `endpoint` None: the first
    line's url counts for the whole file. `limits` None: those of the settings.
    """
    stream = iter(chunks)
    head = b""
    for chunk in stream:
        head += chunk
        if len(head) >= file_type.LONGEST:
            break
    if fault := file_type.refusal(head):
        yield fault
        return
    start = len(UTF8_BOM) if head.startswith(UTF8_BOM) else 0
    found = None
    reader = LineReader(endpoint, models, limits)
    for found in reader.read(chain([head[start:]], stream), start=start):
        yield found
    if found is None:
        yield Fault("empty_file", "The file has no requests. Write one JSON object on each line.")


def too_long(span: Span, limit: int) -> Fault:
    """The fault of a line of more than `limit` bytes."""
    message = (
        f"The line has {span.length:,} bytes; the most is {limit:,}. Shorten the request, or refer"
        " to large content by URL."
    )
    return Fault("line_too_long", message, span.line_no)


class LineReader:
    """Checks the lines of one file, in order.

    `seen` maps each custom id to its line number, `count` is the number of requests, `inputs` that
    of the inputs of embeddings in good lines, and `last_line` the number of the last line read.
    """

    def __init__(
        self, endpoint: str | None, models: Mapping[str, Model], limits: Settings | None = None
    ) -> None:
        self.endpoint = endpoint
        self.models = models
        self.seen: dict[str, int] = {}
        self.count = self.inputs = self.last_line = 0
        limits = limits or settings()
        self.longest, self._most = limits.max_line_bytes, limits.max_batch_lines
        self._most_inputs = limits.max_batch_inputs

    def read(self, chunks: Iterable[bytes], *, start: int = 0) -> Iterator[GoodLine | Fault]:
        """Check each line that is not blank, up to a fault with a code of OF_FILE.

        `start`: the offset in the file, in bytes, at which the chunks begin. The line there has the
        number 1.
        """
        for block in blocks(chunks, longest=self.longest, start=start):
            for found in self.check(block):
                yield found
                if isinstance(found, Fault) and found.code in OF_FILE:
                    return
            self.last_line = block.spans[-1].line_no

    def check(self, block: Block) -> Iterator[GoodLine | Fault]:
        """Check each line of a block that is not blank.

        Stop reading the file at a fault with a code of OF_FILE.
        """
        values = fast_path.decode(block)
        if values is None:
            for span in block.spans:
                found = self._single(block, span)
                if found is not None:
                    yield found
            return
        for span, value in zip(block.spans, values, strict=True):
            found = self._usual(block, span, value) or self._single(block, span)
            if found is not None:
                yield found

    def _usual(self, block: Block, span: Span, value: UsualLine) -> GoodLine | None:
        """The line, if its decoded value is valid; None sends it down the slow path."""
        chat, custom_id, endpoint = value.body, value.custom_id, self.endpoint
        if endpoint is None:
            return None
        # Most lines spell the url as the catalog does, which costs one comparison.
        if value.url != endpoint and endpoint_of(value.url) != endpoint:
            return None
        model = self.models.get(chat.model)
        if model is None or endpoint not in model.endpoints or model.is_reranker or chat.stream:
            return None
        # A line with no more bytes than the window has tokens needs no token count.
        if span.length > model.context_window or span.length > self.longest:
            return None
        if self.count >= self._most or custom_id in self.seen or "\x00" in custom_id:
            return None
        self.seen[custom_id] = span.line_no
        self.count += 1
        return GoodLine(span, custom_id, endpoint, chat.model, chat, block)

    def _single(self, block: Block, span: Span) -> GoodLine | Fault | None:
        """Check one line of any form; None if it is blank."""
        is_long = block.data is None or span.length > self.longest
        raw = b"" if is_long else block.line(span)
        if not is_long and not raw.strip(b" \t\r"):
            return self._blank(span)
        # Another line may have sent the block down the slow path.
        if len(block.spans) > 1:
            values = fast_path.decode(Block([span], block.data, block.start))
            usual = self._usual(block, span, values[0]) if values else None
            if usual is not None:
                return usual
        self.count += 1
        if self.count > self._most:
            message = (
                f"The file has more than {self._most:,} requests, the most of one batch. Split it"
                " into several files."
            )
            return Fault(TOO_MANY, message, span.line_no)
        return too_long(span, self.longest) if is_long else self._any(block, span, raw)

    def _blank(self, span: Span) -> Fault | None:
        if span.line_no < self._most * LINES_PER_REQUEST:
            return None
        message = (
            f"The file has {span.line_no:,} lines, most of them blank. Remove the blank lines."
        )
        return Fault(TOO_MANY, message, span.line_no)

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
        if fault := hidden(raw, line) or self._id(value, line):
            return fault
        request = (
            _refused(value, line)
            or self._address(value, line)
            or self._model(value, line)
            or self._request(value, line, len(raw))
        )
        if isinstance(request, Fault):
            return replace(request, custom_id=value["custom_id"])
        self.inputs += request.inputs
        if self._most_inputs is not None and self.inputs > self._most_inputs:
            return self._too_many_inputs(request, line)
        return GoodLine(
            span, value["custom_id"], cast(Endpoint, self.endpoint), request.model, request, block
        )

    def _too_many_inputs(self, request: Form, line: int) -> Fault:
        message = (
            f"With the {request.inputs:,} of this line, the file has {self.inputs:,} inputs of"
            f" embeddings; the most of one batch is {self._most_inputs:,}. Split the file before"
            " this line."
        )
        return Fault(TOO_MANY_INPUTS, message, line, "body.input")

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
            return Fault(DUPLICATE, message, line, "custom_id")
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

    def _request(self, value: dict[str, Any], line: int, size: int) -> Form | Fault:
        """The body, typed. `size`: the length of the line in bytes."""
        model = self.models[value["body"]["model"]]
        request = operations.fit(
            value["body"], cast(Endpoint, self.endpoint), is_reranker=model.is_reranker
        )
        if isinstance(request, InvalidBody):
            return Fault("invalid_request", request.message, line, request.param)
        if request.live_only:
            return Fault(
                "invalid_request", request.live_only.message, line, request.live_only.param
            )
        # A byte-level tokenizer makes at most one token of a byte.
        excess = request.overflow(model.window) if size > model.context_window else None
        if excess is not None:
            return Fault("context_length_exceeded", excess.message, line, excess.param)
        return request

    def _serving(self) -> list[str]:
        return [model.id for model in self.models.values() if self.endpoint in model.endpoints]

    def _suggestion(self, name: object) -> str:
        close: list[str] = []
        if isinstance(name, str):
            close = difflib.get_close_matches(name[:100].lower(), self.models, n=3, cutoff=0.5)
        if close:
            return f"Did you mean {' or '.join(close)}?"
        return f"Name one of: {', '.join(self._serving()[:20])}."


def hidden(raw: bytes, line: int) -> Fault | None:
    """The fault of a line that parses here: too deeply nested for a backend, or a repeated key."""
    # Most of the cost of a long line is here. Deleting a byte is four times as fast as counting it.
    brackets = len(raw) - len(raw.replace(b"[", b"").replace(b"{", b""))
    if brackets > json_errors.MAX_DEPTH and json_errors.is_too_deep(raw):
        return json_errors.diagnose(raw, line)
    if not fast_path.may_repeat_keys(raw):
        return None
    key = json_errors.repeated_key(raw)
    if key is None:
        return None
    message = (
        f"The key {quoted(key)} is there twice, and which one counts is anyone's guess. Remove one."
    )
    return Fault("invalid_json_line", message, line)


def refused_line(custom_id: str, param: str, message: str) -> dict[str, Any]:
    """A line for a request that another API's view has refused already, so that it fails alone."""
    return {"custom_id": custom_id, "refused": {"param": param, "message": message}}


def _refused(value: dict[str, Any], line: int) -> Fault | None:
    """The fault of a line that `refused_line` made; its author wrote no line of ours."""
    refused = value.get("refused")
    if not isinstance(refused, dict) or "method" in value:
        return None
    # Any file may have such a line, so its words are as hostile as any.
    param, message = (
        "".join(filter(str.isprintable, str(refused.get(key, ""))[:1_000]))
        for key in ("param", "message")
    )
    return Fault("invalid_request", message, line, param or None)


def _missing(param: str, line: int, remedy: str) -> Fault:
    return Fault("missing_required_parameter", f"{param} is missing. {remedy}", line, param)


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return {bool: "a boolean", str: "a string", list: "a list", dict: "an object"}.get(
        type(value), "a number"
    )
