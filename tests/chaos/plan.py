"""A plan from a seed: the batches that are driven, and the faults meanwhile.

The same seed always gives the same plan. Faults start at shares of the finished work, so they come
at the same stage on a slow machine, though never at the same instruction.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tests import factories
from tests.chaos.crash_points import POINTS
from tests.chaos.faults import BUSIEST, MOODS, NETWORK, STORMS, Fault
from tests.chaos.system import DEFAULT, LINKS, SHORT, WORKERS
from tests.factories import CHAT_MODEL, RERANK_MODEL
from xalen_batch.endpoints.names import CHAT, RERANK

# This number of consecutive seeds has every fault at least once.
ROUND = 20
EVERY = 50
MOST_KILLS = 30
REFUSED_SHARE = 0.06
REFUSALS = ("status=400", "status=413", "status=422")


Sent = Literal["file", "parts", "sdk", "requests", "retry"]


@dataclass(frozen=True)
class Order:
    """A batch to create: its lines, those that the model refuses, and the share of ended lines at
    which it is cancelled.

    `sent`: its lines are a file in one request, a file in parts (by hand, or by the SDK), or the
    body of the batch; those of a retry are the product's own copy. `is_retried`: its lines that failed are retried once.
    """

    name: str
    endpoint: str
    lines: tuple[dict[str, Any], ...]
    refused: frozenset[str] = frozenset()
    cancel_at: float | None = None
    sent: Sent = "file"
    is_retried: bool = False

    @property
    def custom_ids(self) -> list[str]:
        return [line["custom_id"] for line in self.lines]


@dataclass(frozen=True)
class Act:
    """Faults that begin together, once a share of all lines has ended."""

    at: float
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Plan:
    """`settings` are those of the system that the plan needs."""

    seed: int
    orders: tuple[Order, ...]
    acts: tuple[Act, ...] = ()
    settings: Mapping[str, object] = field(default_factory=lambda: SHORT)

    @property
    def lines(self) -> int:
        return sum(len(order.lines) for order in self.orders)

    @property
    def faults(self) -> list[Fault]:
        return [fault for act in self.acts for fault in act.faults]


def plan(seed: int) -> Plan:
    """Most seeds mix all faults.

    Of every fifty one kills a worker at the product's own lease, and one kills workers all the
    time.
    """
    dice = random.Random(seed)
    if seed % EVERY == 0:
        return killed_as_installed(seed, dice)
    if seed % EVERY == EVERY // 2:
        return killed_all_the_time(seed, dice)
    dealt = [_timed(kind, on, dice) for kind, on in _dealt(seed)]
    if dice.random() < 0.5:
        dealt.append(_timed("kill -9", dice.choice(WORKERS), dice))
    acts = [Act(_moment(fault, dice), (fault,)) for fault in dealt]
    acts.sort(key=lambda act: act.at)
    return Plan(seed, tuple(orders(seed, dice)), tuple(_overlapped(acts, dice)))


def killed_as_installed(seed: int, dice: random.Random) -> Plan:
    """A worker is killed in the middle of a batch, with default settings."""
    ordered = (_order(seed, "chat", CHAT, 300, dice), _order(seed, "rerank", RERANK, 200, dice))
    return Plan(
        seed, ordered, (Act(dice.uniform(0.2, 0.5), (Fault("kill -9", BUSIEST),)),), DEFAULT
    )


def killed_all_the_time(seed: int, dice: random.Random) -> Plan:
    """Thirty kills of workers in one batch."""
    kills = [
        Fault("kill -9", dice.choice(WORKERS), dice.uniform(0, 0.5)) for _ in range(MOST_KILLS)
    ]
    acts = [Act(0.9 * number / MOST_KILLS, (kill,)) for number, kill in enumerate(kills)]
    return Plan(seed, (_order(seed, "chat", CHAT, 900, dice),), tuple(acts))


def every_fault() -> list[tuple[str, str]]:
    """Each kind of fault with each of its targets."""
    return [
        *(("kill -9", name) for name in ("api", *WORKERS, "beat", "all")),
        *(("freeze", name) for name in WORKERS),
        ("rolling restart", "all"),
        ("Valkey killed, back empty", "valkey"),
        ("Valkey frozen", "valkey"),
        *(("PostgreSQL stopped", number) for number in ("SIGKILL", "SIGQUIT")),
        *(("network", f"{link}: {how}") for link in LINKS for how in NETWORK),
        *(("storm", name) for name in STORMS),
        *(("receiver", mood) for mood in MOODS),
        *(("crash point", name) for name in POINTS),
    ]


def _dealt(seed: int) -> list[tuple[str, str]]:
    """The faults of a seed: its share of a shuffled list, which `ROUND` seeds divide up."""
    pack = every_fault()
    round_, turn = divmod(seed - 1, ROUND)
    random.Random(f"round {round_}").shuffle(pack)
    return pack[turn::ROUND]


def _timed(kind: str, on: str, dice: random.Random) -> Fault:
    if kind == "crash point":
        return Fault(kind, on, dice.randint(1, POINTS[on].most))
    if kind == "freeze":
        # Longer than the lease.
        return Fault(kind, on, dice.uniform(4, 5))
    if kind == "rolling restart":
        return Fault(kind, on)
    return Fault(kind, on, dice.uniform(0.2, 2.5))


def _moment(fault: Fault, dice: random.Random) -> float:
    # A crash point in the first moments of a batch has to be armed before.
    is_early = fault.is_crash_point or dice.random() < 0.2
    return 0.0 if is_early else dice.uniform(0.0, 0.8)


def _overlapped(acts: list[Act], dice: random.Random) -> Iterator[Act]:
    """Start some faults together with the one before. A clean restart comes alone, since it has a
    guarantee of its own to check.
    """
    waiting: Act | None = None
    for act in acts:
        is_alone = any(fault.kind == "rolling restart" for fault in act.faults)
        if waiting is not None and not is_alone and dice.random() < 0.25:
            waiting = Act(waiting.at, (*waiting.faults, *act.faults))
            continue
        if waiting is not None:
            yield waiting
        waiting = act
        if is_alone:
            yield waiting
            waiting = None
    if waiting is not None:
        yield waiting


def orders(seed: int, dice: random.Random) -> Iterator[Order]:
    """Four batches: chat, rerank, both models in one, and a small one.

    Some lines are refused; some batches are cancelled. The mixed and the small one are retried.
    """
    yield _order(seed, "chat", CHAT, dice.randint(120, 200), dice)
    rerank = _order(seed, "rerank", RERANK, dice.randint(80, 160), dice)
    yield replace(rerank, sent="sdk")
    cancel_at = dice.uniform(0.1, 0.6) if dice.random() < 0.6 else None
    mixed = _order(seed, "mixed", CHAT, dice.randint(60, 100), dice, cancel_at)
    yield replace(mixed, sent="parts", is_retried=True)
    small = _order(
        seed,
        "small",
        dice.choice((CHAT, RERANK)),
        dice.randint(1, 6),
        dice,
        0.0 if dice.random() < 0.3 else None,
        refuses_first=True,
    )
    yield replace(small, sent="requests", is_retried=True)


def _order(
    seed: int,
    name: str,
    endpoint: str,
    count: int,
    dice: random.Random,
    cancel_at: float | None = None,
    *,
    refuses_first: bool = False,
) -> Order:
    lines, refused = [], set()
    for number in range(1, count + 1):
        token = f"run-{seed}-{name}-{number}"
        refusal = dice.choice(REFUSALS) if dice.random() < REFUSED_SHARE else None
        if refuses_first and number == 1:
            refusal = REFUSALS[0]
        if refusal:
            refused.add(token)
        lines.append(
            _line(
                token,
                endpoint,
                refusal,
                is_reranked=name == "mixed" and number % 2 == 0 and not refusal,
            )
        )
    return Order(name, endpoint, tuple(lines), frozenset(refused), cancel_at)


def _line(token: str, endpoint: str, refusal: str | None, *, is_reranked: bool) -> dict[str, Any]:
    if endpoint == RERANK:
        asked = {"simulate": refusal} if refusal else {}
        return factories.rerank_line(token, f"Where is parcel {token}?", **asked)
    if is_reranked:
        query = (
            f'{{"query": "Where is parcel {token}?", "documents": ["It is on its way.", "It came'
            ' back."]}'
        )
        return factories.chat_line(token, query, model=RERANK_MODEL)
    asked = {"metadata": {"simulate": refusal}} if refusal else {}
    return factories.chat_line(token, f"Where is parcel {token}?", model=CHAT_MODEL, **asked)
