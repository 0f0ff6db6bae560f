"""The invariants of a finished run, whichever faults it had. Each violation is one sentence.

The oracle reads the client's deliveries, PostgreSQL's rows and the model server's log, and derives
all else itself: it uses no code of the product.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tests.chaos.drive import Delivery
from tests.factories import CHAT_MODEL, RERANK_MODEL

# The catalog's list prices, USD per token, and the discount of a batch.
PRICES = {
    CHAT_MODEL: (Decimal("0.02"), Decimal("0.04")),
    RERANK_MODEL: (Decimal("0.003"), Decimal(0)),
}
PER_TOKEN = Decimal("0.000001")
NET = Decimal("0.5")
# Errors with which a line may end although the model would have answered it: a rule gave it up, the
# client was told, and it is not billed.
GIVEN_UP = frozenset({"backend_unavailable", "bad_answer", "request_timeout", "worker_lost"})
# Errors of lines that were never run: they are neither completed nor failed.
UNRUN = frozenset({"batch_cancelled", "batch_expired"})
SHOWN = 5

Row = dict[str, Any]


@dataclass
class Calls:
    """The model server's calls, by token: all requests, and those with a good answer.

    `live`: the tokens of live calls, by the ids of their requests.
    """

    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    live: dict[str, str] = field(default_factory=dict)

    @property
    def repeated(self) -> int:
        """Good answers beyond the first of a line: the operator pays for them, the invoice does not."""
        return sum(count - 1 for count in self.answered.values() if count > 1)


def read_calls(log: Path, start: int) -> Calls:
    """The calls in a model server's log from that byte on."""
    calls = Calls()
    with log.open("rb") as lines:
        lines.seek(start)
        for line in lines:
            token, _, _, is_good, request_id = line.decode().split()
            if "-live-" in token:
                calls.live[request_id] = token
                continue
            calls.asked[token] += 1
            calls.answered[token] += int(is_good)
    return calls


def wrong(
    connection: psycopg.Connection, run: str, deliveries: Sequence[Delivery], calls: Calls
) -> list[str]:
    """All violations of the invariants, one sentence for each."""
    batches = _rows(connection, "SELECT * FROM batches WHERE metadata ->> 'run' = %s", [run])
    found = [*_made_once(deliveries, batches), *_merged(deliveries)]
    by_id = {f"batch_{batch['id'].hex}": batch for batch in batches}
    for delivery in deliveries:
        found += [
            f"{delivery.order.name}: the client was told {words}" for words in delivery.unexpected
        ]
        batch = by_id.get(delivery.batch.get("id", ""))
        if batch is not None and delivery.ended_at is not None:
            found += [
                f"{delivery.order.name}: {words}"
                for words in _of_batch(connection, delivery, batch, calls)
            ]
    return found


def lost_and_doubled(deliveries: Iterable[Delivery]) -> tuple[int, int]:
    """Lines that the client ordered and did not get, and lines that it got more than once."""
    lost = doubled = 0
    for delivery in deliveries:
        wanted = Counter(_ordered(delivery))
        delivered = Counter(line["custom_id"] for line in (*delivery.output, *delivery.errors))
        lost += (wanted - delivered).total()
        doubled += (delivered - wanted).total()
    return lost, doubled


def given_up(deliveries: Iterable[Delivery]) -> Counter[str]:
    """Lines that failed although the model would have answered them, by the reason that the client
    was given.
    """
    return Counter(
        _reason(line)
        for delivery in deliveries
        for line in delivery.errors
        if line["custom_id"] not in delivery.order.refused and _reason(line) != "batch_cancelled"
    )


def _made_once(deliveries: Sequence[Delivery], batches: Sequence[Row]) -> Iterator[str]:
    made = Counter(batch["metadata"]["order"] for batch in batches)
    for delivery in deliveries:
        name = delivery.order.name
        if made[name] != 1:
            yield f"{name}: one Idempotency-Key made {made[name]} batches"
        if delivery.ended_at is None:
            yield f"{name}: the batch did not end"


def _merged(deliveries: Sequence[Delivery]) -> Iterator[str]:
    """Merged results have each line once, in the order of the input, with its last answer."""
    by_id = {delivery.batch.get("id"): delivery for delivery in deliveries}
    for retry in deliveries:
        first = by_id.get(retry.first_id)
        if first is None or retry.ended_at is None:
            continue
        name, last = first.order.name, {}
        for line in (*first.output, *first.errors, *retry.output, *retry.errors):
            last[line["custom_id"]] = (line["response"], line["error"])
        found = [line["custom_id"] for line in first.merged]
        yield from (
            f"{name}: {words}"
            for words in _differences(
                "merged lines", Counter(first.order.custom_ids), Counter(found)
            )
        )
        if found != sorted(found, key=first.order.custom_ids.index):
            yield f"{name}: the merged lines are not in the order of the input"
        for line in first.merged:
            if (line["response"], line["error"]) != last[line["custom_id"]]:
                yield f"{name}: {line['custom_id']} is not merged with its last result"


def _of_batch(
    connection: psycopg.Connection, delivery: Delivery, batch: Row, calls: Calls
) -> Iterator[str]:
    results = _rows(
        connection, "SELECT * FROM results WHERE batch_id = %s ORDER BY line_no", [batch["id"]]
    )
    yield from _ended(delivery, batch)
    yield from _each_line_once(delivery, results)
    yield from _counts(connection, delivery, batch, results)
    yield from _answers(delivery, calls)
    yield from _money(connection, delivery, batch, results)


def _ended(delivery: Delivery, batch: Row) -> Iterator[str]:
    allowed = {"completed"} if delivery.order.cancel_at is None else {"completed", "cancelled"}
    if batch["status"] not in allowed:
        yield f"its status is {batch['status']}, {batch['errors'] or ''}"
    if batch["status"] != delivery.batch["status"]:
        yield f"the client was told {delivery.batch['status']}, and {batch['status']} is on record"


def _each_line_once(delivery: Delivery, results: Sequence[Row]) -> Iterator[str]:
    wanted = _ordered(delivery)
    place = {custom_id: number for number, custom_id in enumerate(wanted)}
    delivered = [line["custom_id"] for line in (*delivery.output, *delivery.errors)]
    yield from _differences("lines of the files", Counter(wanted), Counter(delivered))
    yield from _differences(
        "results on record", Counter(wanted), Counter(row["custom_id"] for row in results)
    )
    for name, lines in (("output", delivery.output), ("error", delivery.errors)):
        places = [place.get(line["custom_id"], -1) for line in lines]
        if places != sorted(places):
            yield f"the {name} file is not in the order of the input"
    good = {
        row["custom_id"]
        for row in results
        if row["status_code"] is not None and row["status_code"] < 300
    }
    yield from _differences(
        "lines of the output file",
        Counter(good),
        Counter(line["custom_id"] for line in delivery.output),
    )


def _ordered(delivery: Delivery) -> list[str]:
    """The custom ids that have to come back.

    A batch that is cancelled before its file was read has no lines.
    """
    is_unread = (
        delivery.batch.get("status") == "cancelled" and delivery.batch["in_progress_at"] is None
    )
    return [] if is_unread else delivery.order.custom_ids


def _differences(what: str, wanted: Counter[str], found: Counter[str]) -> Iterator[str]:
    for word, difference in (("missing", wanted - found), ("too many", found - wanted)):
        if difference:
            yield (
                f"{difference.total()} {word} of the {what}: {', '.join(list(difference)[:SHOWN])}"
            )


def _counts(
    connection: psycopg.Connection, delivery: Delivery, batch: Row, results: Sequence[Row]
) -> Iterator[str]:
    good = sum(row["amount"] is not None for row in results)
    unrun = sum(row["error_code"] in UNRUN for row in results)
    counted = (len(results), good, len(results) - good - unrun)
    tasks = _rows(
        connection,
        "SELECT coalesce(sum(lines), 0) AS total, coalesce(sum(completed), 0) AS completed,"
        " coalesce(sum(failed), 0) AS failed FROM tasks WHERE batch_id = %s",
        [batch["id"]],
    )[0]
    shown = delivery.batch["request_counts"]
    for what, found in (
        ("counts on record", batch),
        ("counts of its tasks", tasks),
        ("counts that the client was told", shown),
    ):
        if (
            values := tuple(int(found[name]) for name in ("total", "completed", "failed"))
        ) != counted:
            yield f"the {what} are {values}, and its lines are {counted} (all, completed, failed)"


def _answers(delivery: Delivery, calls: Calls) -> Iterator[str]:
    for line in delivery.output:
        custom_id, body = line["custom_id"], line["response"]["body"]
        echo = (
            body.get("meta", {}).get("echo")
            or body.get("system_fingerprint", "").rpartition(" ")[2]
        )
        if echo != custom_id and echo.startswith("run-"):
            yield f"{custom_id} has the answer of {echo}"
        if not calls.answered[custom_id]:
            yield f"{custom_id} has an answer that the model never gave"
        if custom_id in delivery.order.refused:
            yield f"{custom_id} was refused by the model, and succeeded"
    for line in delivery.errors:
        reason, is_refused = _reason(line), line["custom_id"] in delivery.order.refused
        if reason == "batch_cancelled":
            if delivery.batch["status"] != "cancelled":
                yield f"{line['custom_id']} was cancelled, and its batch was not"
        elif not is_refused and reason not in GIVEN_UP:
            yield f"{line['custom_id']} failed with {reason}"


def _reason(line: dict[str, Any]) -> str:
    error = line["error"] or (line["response"]["body"] or {}).get("error") or {}
    return str(error.get("code"))


def _money(
    connection: psycopg.Connection, delivery: Delivery, batch: Row, results: Sequence[Row]
) -> Iterator[str]:
    answered = {line["custom_id"]: line["response"]["body"] for line in delivery.output}
    total, tokens = Decimal(0), Counter[tuple[str, str]]()
    for row in results:
        body, amount = answered.get(row["custom_id"]), row["amount"]
        if body is None:
            if amount is not None:
                yield f"{row['custom_id']} failed and was charged {amount}"
            continue
        usage = body["usage"]
        read, written = usage["prompt_tokens"], usage.get("completion_tokens", 0)
        prices = PRICES[row["model"]]
        charge = (read * prices[0] + written * prices[1]) * PER_TOKEN * NET
        tokens += Counter({(row["model"], "input"): read, (row["model"], "output"): written})
        total += charge
        if amount != charge:
            yield f"{row['custom_id']} was charged {amount}, and costs {charge}"
    invoices = _rows(
        connection, "SELECT id, total FROM invoices WHERE batch_id = %s", [batch["id"]]
    )
    if [invoice["total"] for invoice in invoices] != [total]:
        yield (
            f"its invoices are {[str(invoice['total']) for invoice in invoices]}, and its lines"
            f" cost {total}"
        )
    if Decimal(delivery.invoice.get("total", "-1")) != total:
        yield f"the client was billed {delivery.invoice.get('total')}, and its lines cost {total}"
    billed: Counter[tuple[str, str]] = Counter()
    for line in delivery.invoice.get("lines", ()):
        if line["kind"] == "usage":
            billed[line["model"], line["component"]] += int(line["quantity"])
    if +billed != +tokens:
        yield f"the invoice is over {dict(billed)} tokens, and its lines used {dict(tokens)}"


def _rows(connection: psycopg.Connection, query: str, values: list[Any]) -> list[Row]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, values).fetchall()  # type: ignore[arg-type]
