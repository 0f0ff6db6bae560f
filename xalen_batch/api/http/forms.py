"""A multipart form as it arrives: the bytes of the file pass through, other fields are kept."""

import re
from collections.abc import Callable
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from typing import TYPE_CHECKING
from urllib.parse import unquote

from python_multipart.multipart import parse_options_header

from xalen_batch.errors import InvalidRequest, TooLarge, XalenError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_FIELD_BYTES = 64 * 1024
MAX_FILENAME = 255
MAX_FIELDS = 100
# RFC 5987: `filename*=UTF-8''na%C3%AFve.jsonl`, which requests and aiohttp send for names that are
# not ASCII.
_EXTENDED = re.compile(r"""(?<![^\s;])filename\*\s*=\s*([\w-]+)'[^']*'([^\s;"]+)""", re.IGNORECASE)
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')


class UploadForm:
    """Collects the events of python-multipart's parser. Fields and the file come in any order.

    The file's content type and name are not checked: clients send bare bytes as `upload`. `name`:
    the field that holds it. `over`: the error if it has more than `most`.
    """

    def __init__(
        self,
        most: int,
        *,
        name: str = "file",
        over: Callable[[int], XalenError] | None = None,
    ) -> None:
        self.name = name
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.size = 0
        self.is_complete = False
        self.most = most
        self._over = over or too_large
        self._pending: list[bytes] = []
        self._field_bytes = self._parts = 0
        self._header = b""
        self._value = b""
        self._disposition = b""
        self._field = ""
        self._content = bytearray()

    def over(self) -> XalenError:
        """The error of a file with too many bytes."""
        return self._over(self.most)

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    def take(self) -> list[bytes]:
        """The bytes of the file that arrived since the last call."""
        taken, self._pending = self._pending, []
        return taken

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _on_headers_finished(self) -> None:
        disposition, self._disposition = self._disposition, b""
        _, options = parse_options_header(disposition)
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        if self._field == self.name:
            if self.filename is not None:
                raise InvalidRequest(
                    f"The form has two parts named `{self.name}`. Send one at a time.",
                    param=self.name,
                )
            self.filename = clean(
                _extended(disposition)
                or _plain(options.get(b"filename", b"").decode("utf-8", "replace"))
            )
            return
        self._parts += 1
        if self._parts > MAX_FIELDS:
            raise TooLarge(
                f"The form has more than {MAX_FIELDS} fields. Send `{self.name}` and the fields"
                " that the API describes.",
                code="request_too_large",
            )

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._field == self.name:
            self.size += end - start
            if self.size > self.most:
                raise self.over()
            self._pending.append(data[start:end])
            return
        self._field_bytes += end - start
        if self._field_bytes > MAX_FIELD_BYTES:
            raise TooLarge(
                f"The form's fields are too long. Send the file's content as `{self.name}`.",
                code="request_too_large",
            )
        self._content += data[start:end]

    def _on_part_end(self) -> None:
        if self._field != self.name:
            self.fields[self._field] = self._content.decode("utf-8", "replace")
            self._content.clear()

    def _on_end(self) -> None:
        self.is_complete = True


def too_large(limit: int) -> TooLarge:
    return TooLarge(
        f"The file is larger than {limit:,} bytes. Upload it in parts (POST /v1/uploads), or split"
        " it into several files.",
        param="file",
    )


def _extended(disposition: bytes) -> str | None:
    """The file name in the extended form (RFC 5987), which takes precedence over the plain one.

    None if it is missing or malformed.
    """
    found = _EXTENDED.search(_QUOTED.sub('""', disposition.decode("utf-8", "replace")))
    try:
        return unquote(found[2], encoding=found[1], errors="replace") if found else None
    except LookupError:
        return None


def _plain(filename: str) -> str:
    """A file name, decoded from the forms of browsers (`%22` is a quotation mark) or RFC 2047.

    Spring sends the latter.
    """
    if not (filename.startswith("=?") and filename.endswith("?=")):
        return filename.replace("%22", '"')
    try:
        return str(make_header(decode_header(filename)))
    except (HeaderParseError, LookupError, ValueError):
        return filename


def clean(filename: str) -> str:
    """The name without control characters, which a text column or a header could not carry."""
    return "".join(filter(str.isprintable, filename))[:MAX_FILENAME] or "upload"
