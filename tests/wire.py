"""A caller of the API over plain HTTP, which measures the duration of each request."""

import json
import time
import urllib.error
import urllib.request
from typing import Any

CHAT = "/v1/chat/completions"
MODEL = "mistral-small-3-1"
TIMEOUT = 300.0
# A body that is sent unchanged: its content type and its bytes.
Raw = tuple[str, bytes]


class Client:
    """A caller with one key. `seconds` has the duration of each request, in order."""

    def __init__(self, base_url: str, key: str) -> None:
        self._url, self._key = base_url, key
        self.seconds: list[float] = []

    def ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Return the JSON of the answer, also of an error."""
        return self._send(method, path, body, {})[1]

    def status(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> int:
        return self._send(method, path, body, headers or {})[0]

    def upload(self) -> str:
        """The id of a file with one line."""
        return str(self.ask("POST", "/files", self.form())["id"])

    def schedule(self, file_id: str | None, **fields: Any) -> dict[str, Any]:
        """A schedule over a file; None: with an inbox."""
        return self.ask("POST", "/schedules", self.definition(file_id, **fields))

    @staticmethod
    def definition(file_id: str | None, **fields: Any) -> dict[str, Any]:
        what: dict[str, Any] = {"inbox": {}} if file_id is None else {"input_file_id": file_id}
        return {"name": "nightly", "endpoint": CHAT, **what, **fields}

    @staticmethod
    def line(custom_id: str, content: str = "Where is my parcel?") -> dict[str, Any]:
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
        return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}

    @classmethod
    def form(cls) -> Raw:
        """The upload of a file with one line."""
        part = b'--edge\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        file = (
            b'--edge\r\nContent-Disposition: form-data; name="file"; filename="input.jsonl"\r\n\r\n'
        )
        return (
            "multipart/form-data; boundary=edge",
            part + file + json.dumps(cls.line("a")).encode() + b"\r\n--edge--\r\n",
        )

    def _send(
        self, method: str, path: str, body: Any, headers: dict[str, str]
    ) -> tuple[int, dict[str, Any]]:
        kind, content = (
            body
            if isinstance(body, tuple)
            else ("application/json", None if body is None else json.dumps(body).encode())
        )
        sent = {"authorization": f"Bearer {self._key}", "content-type": kind, **headers}
        begun = time.perf_counter()
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self._url + path, content, sent, method=method),
                timeout=TIMEOUT,
            ) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        finally:
            self.seconds.append(time.perf_counter() - begun)
