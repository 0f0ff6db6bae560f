"""A client of the campaign: one batch through the official SDK, from the upload to the invoice,
whatever happens meanwhile.

It does what any client should: it repeats requests without an answer, with the same
Idempotency-Key, and obeys Retry-After. It records the answers that no client should get.
"""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import openai

from tests import factories
from tests.chaos.plan import Order

T = TypeVar("T")
POLL = 0.5
REQUEST_TIMEOUT = 10.0
TERMINAL = frozenset({"completed", "failed", "cancelled", "expired"})


class TooLate(Exception):
    """The batch did not end, or its files did not come, in the time that it had."""


@dataclass
class Delivery:
    """The files, the invoice and the answers that the client got for its order."""

    run: str
    order: Order
    batch: dict[str, Any] = field(default_factory=dict)
    output: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    invoice: dict[str, Any] = field(default_factory=dict)
    # Answers that are a fault of the server: all but an object, a 503 with Retry-After, and a
    # connection that fails.
    unexpected: list[str] = field(default_factory=list)
    ended_at: float | None = None  # monotonic
    unanswered: int = 0


class Client(threading.Thread):
    """Drives one order. `join` it; it gives up when `deadline` is set and over."""

    def __init__(self, base_url: str, key: str, run: str, order: Order) -> None:
        super().__init__(name=f"client-{order.name}", daemon=True)
        self.delivery = Delivery(run, order)
        self.deadline: float | None = None
        self._sdk = openai.OpenAI(
            base_url=base_url, api_key=key, max_retries=0, timeout=REQUEST_TIMEOUT
        )

    def run(self) -> None:
        try:
            self._drive()
        except TooLate as late:
            self.delivery.unexpected.append(str(late))
        except Exception as error:
            self.delivery.unexpected.append(f"{type(error).__name__}: {error}")
        finally:
            self._sdk.close()

    def _drive(self) -> None:
        order, delivery = self.delivery.order, self.delivery
        content = factories.jsonl(order.lines)
        name = f"{delivery.run}-{order.name}"
        file = self._insist(
            lambda: self._sdk.files.create(
                file=(f"{name}.jsonl", content),
                purpose="batch",
                extra_headers={"Idempotency-Key": f"upload-{name}"},
            )
        )
        batch = self._insist(
            lambda: self._sdk.batches.create(
                input_file_id=file.id,
                endpoint=order.endpoint,  # type: ignore[arg-type]
                completion_window="24h",
                metadata={"run": delivery.run, "order": order.name},
                extra_headers={"Idempotency-Key": f"create-{name}"},
            )
        )
        batch_id, is_cancelled = batch.id, False
        while batch.status not in TERMINAL:
            counts = batch.request_counts
            if (
                order.cancel_at is not None
                and not is_cancelled
                and counts
                and counts.completed >= order.cancel_at * len(order.lines)
            ):
                self._insist(lambda: self._cancel(batch_id))
                is_cancelled = True
            if self.deadline is not None and time.monotonic() > self.deadline:
                raise TooLate(f"{order.name} did not end in time: it is {batch.status}, {counts}")
            time.sleep(POLL)
            batch = self._insist(lambda: self._sdk.batches.retrieve(batch_id))
        delivery.ended_at = time.monotonic()
        delivery.batch = batch.to_dict(mode="json")
        delivery.output = self._lines(batch.output_file_id)
        delivery.errors = self._lines(batch.error_file_id)
        if batch.status != "failed":
            delivery.invoice = self._insist(
                lambda: self._sdk.get(f"/batches/{batch.id}/invoice", cast_to=dict)
            )  # type: ignore[type-var]

    def _cancel(self, batch_id: str) -> None:
        try:
            self._sdk.batches.cancel(batch_id)
        except openai.ConflictError:
            # The batch ended before the cancel arrived.
            if self._sdk.batches.retrieve(batch_id).status not in TERMINAL:
                raise

    def _lines(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        return [
            json.loads(line)
            for line in self._insist(lambda: self._sdk.files.content(file_id).content).splitlines()
        ]

    def _insist(self, ask: Callable[[], T]) -> T:
        """Repeat a request until it is answered. Raises TooLate."""
        while True:
            pause = POLL
            try:
                return ask()
            except openai.APIConnectionError:
                self.delivery.unanswered += 1
            except openai.APIStatusError as error:
                retry_after = error.response.headers.get("retry-after")
                if error.status_code != 503 or retry_after is None:
                    self.delivery.unexpected.append(
                        f"{error.request.method} {error.request.url.path}: {error.status_code}"
                        f" {error.message}"
                    )
                    raise
                self.delivery.unanswered += 1
                pause = min(float(retry_after), 1.0)
            if self.deadline is not None and time.monotonic() > self.deadline:
                raise TooLate(f"no answer in time about {self.delivery.order.name}")
            time.sleep(pause)
