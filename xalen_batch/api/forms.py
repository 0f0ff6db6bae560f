"""A multipart form as it arrives: the file's bytes pass through, the other fields are kept."""

from typing import TYPE_CHECKING

from python_multipart.multipart import parse_options_header

from xalen_batch.errors import InvalidRequest, TooLarge

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_FIELD_BYTES = 64 * 1024
MAX_FILENAME = 255


class Form:
    """What python-multipart's callbacks tell. Fields and files come in any order.

    Neither the file's content type nor its name is looked at: clients send bare bytes as `upload`.
    """

    def __init__(self, max_file_bytes: int) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.size = 0
        self.is_complete = False
        self._max_file_bytes = max_file_bytes
        self._pending: list[bytes] = []
        self._field_bytes = 0
        self._header = b""
        self._value = b""
        self._disposition = b""
        self._name = ""
        self._content = bytearray()

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
        """The file's bytes that came since the last call."""
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
        _, options = parse_options_header(self._disposition)
        self._disposition = b""
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name == "file":
            if self.filename is not None:
                raise InvalidRequest("The form has two parts named `file`. Upload one file at a time.", param="file")
            self.filename = _clean(options.get(b"filename", b"").decode("utf-8", "replace"))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == "file":
            self.size += end - start
            if self.size > self._max_file_bytes:
                raise too_large(self._max_file_bytes)
            self._pending.append(data[start:end])
            return
        self._field_bytes += end - start
        if self._field_bytes > MAX_FIELD_BYTES:
            raise TooLarge("The form's fields are too long. Send the file's content as the part `file`.", code="request_too_large")
        self._content += data[start:end]

    def _on_part_end(self) -> None:
        if self._name != "file":
            self.fields[self._name] = self._content.decode("utf-8", "replace")
            self._content.clear()

    def _on_end(self) -> None:
        self.is_complete = True


def too_large(limit: int) -> TooLarge:
    return TooLarge(f"The file is larger than {limit:,} bytes. Split it into several files.", param="file")


def _clean(filename: str) -> str:
    """The name as it was sent, without what a text column or a header could not carry."""
    return "".join(filter(str.isprintable, filename))[:MAX_FILENAME] or "upload"
