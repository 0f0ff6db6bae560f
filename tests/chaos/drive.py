"""A client of the campaign: one batch through the official SDK, from the upload to the invoice and
to its retry, whatever happens meanwhile.

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
from openai.types import Batch

from tests import factories
from tests.chaos import parts
from tests.chaos.plan import Order

T = TypeVar("T")
POLL = 0.5
REQUEST_TIMEOUT = 10.0
TERMINAL = frozenset({"completed", "failed", "cancelled", "expired"})


class TooLate(Exception):
    """The batch did not end, or its files did not come, in the time that it had."""


@dataclass
class Delivery:
    """The files, the invoice and the answers that the client got for its order.

    `first_id`: of a retry, the batch whose lines these are. `merged`: of a batch with a retry.
    """

    run: str
    order: Order
    batch: dict[str, Any] = field(default_factory=dict)
    output: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    invoice: dict[str, Any] = field(default_factory=dict)
    first_id: str = ""
    merged: list[dict[str, Any]] = field(default_factory=list)
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
        self.retry: Delivery | None = None
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

    @property
    def deliveries(self) -> list[Delivery]:
        return [self.delivery] if self.retry is None else [self.delivery, self.retry]

    def _drive(self) -> None:
        self._follow(self.delivery, self._create())
        if self.delivery.order.is_retried and self.delivery.errors:
            self._retry()

    def _create(self) -> Batch:
        order, name = self.delivery.order, f"{self.delivery.run}-{self.delivery.order.name}"
        body: dict[str, Any] = {
            "endpoint": order.endpoint,
            "completion_window": "24h",
            "metadata": {"run": self.delivery.run, "order": order.name},
        }
        if order.sent == "requests":
            body["requests"] = list(order.lines)
        else:
            body["input_file_id"] = self._upload(f"{name}.jsonl", factories.jsonl(order.lines))
        return self._insist(
            lambda: self._sdk.post(
                "/batches",
                cast_to=Batch,
                body=body,
                options={"headers": {"Idempotency-Key": f"create-{name}"}},
            )
        )

    def _upload(self, filename: str, content: bytes) -> str:
        """The id of the input file, uploaded as the order says."""
        sent = self.delivery.order.sent
        if sent == "sdk":
            return self._insist(lambda: parts.by_sdk(self._sdk, filename, content))
        if sent == "parts":
            parts.abandon(self._sdk, filename, content)
            return parts.upload(self._sdk, self._insist, filename, content)
        key = {"Idempotency-Key": f"upload-{filename}"}
        return self._insist(
            lambda: self._sdk.files.create(
                file=(filename, content), purpose="batch", extra_headers=key
            )
        ).id

    def _retry(self) -> None:
        """Retry the lines that failed, and read the merged results."""
        first, order = self.delivery, self.delivery.order
        failed = {line["custom_id"] for line in first.errors}
        again = Order(
            f"{order.name}-retry",
            order.endpoint,
            tuple(line for line in order.lines if line["custom_id"] in failed),
            order.refused & failed,
            sent="retry",
        )
        self.retry = Delivery(first.run, again, first_id=first.batch["id"])
        batch = self._insist(
            lambda: self._sdk.post(
                f"/batches/{first.batch['id']}/retry",
                cast_to=Batch,
                body={"metadata": {"run": first.run, "order": again.name}},
                options={"headers": {"Idempotency-Key": f"{first.run}-{again.name}"}},
            )
        )
        self._follow(self.retry, batch)
        first.merged = self._insist(lambda: merged(self._sdk, first.batch["id"]))

    def _follow(self, delivery: Delivery, batch: Batch) -> None:
        """Wait until a batch has ended, and get its files and its invoice."""
        order, batch_id, is_cancelled = delivery.order, batch.id, False
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
                # An answer to `complete` was lost, and the server still joins the parts.
                is_busy = error.code == "upload_busy"
                if (error.status_code != 503 and not is_busy) or retry_after is None:
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


def merged(sdk: openai.OpenAI, batch_id: str) -> list[dict[str, Any]]:
    """The merged results of a batch and its retry."""
    read = sdk.get(
        f"/batches/{batch_id}/output?merged=true", cast_to=openai.HttpxBinaryResponseContent
    )
    return [json.loads(line) for line in read.content.splitlines()]
