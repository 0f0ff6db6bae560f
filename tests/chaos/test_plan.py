"""A seed decides the plan, and a round of seeds meets everything."""

from collections import Counter

import pytest

from tests.chaos.crash_points import POINTS, resolve
from tests.chaos.plan import EVERY, MOST_KILLS, ROUND, Plan, every_fault, plan
from tests.chaos.system import DEFAULT, SHORT
from tests.factories import CHAT_MODEL, RERANK_MODEL


def models(made: Plan) -> set[str]:
    return {line["body"]["model"] for order in made.orders for line in order.lines}


def test_the_same_seed_is_the_same_plan() -> None:
    assert plan(17) == plan(17)
    assert plan(17) != plan(18)


@pytest.mark.parametrize("first", [1, 101, 301])
def test_a_round_of_seeds_meets_every_fault(first: int) -> None:
    assert {
        (fault.kind, fault.on)
        for seed in range(first, first + ROUND)
        for fault in plan(seed).faults
    } == set(every_fault())


@pytest.mark.parametrize("seed", range(1, 21))
def test_a_run_is_of_both_models_and_no_id_is_there_twice(seed: int) -> None:
    made = plan(seed)
    assert models(made) == {CHAT_MODEL, RERANK_MODEL}
    ids = Counter(custom_id for order in made.orders for custom_id in order.custom_ids)
    assert set(ids.values()) == {1}
    assert made.settings == SHORT


def test_some_lines_are_refused_and_some_batches_cancelled() -> None:
    ordered = [order for seed in range(1, 21) for order in plan(seed).orders]
    assert sum(bool(order.refused) for order in ordered) > 20
    assert sum(order.cancel_at is not None for order in ordered) > 5


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_lines_are_sent_in_every_way_and_a_retry_has_lines(seed: int) -> None:
    ordered = plan(seed).orders
    assert [order.sent for order in ordered] == ["file", "sdk", "parts", "requests"]
    small = ordered[-1]
    assert small.is_retried
    assert small.custom_ids[0] in small.refused


def test_of_fifty_seeds_one_kills_at_the_default_lease_and_one_kills_thirty_times() -> None:
    assert plan(EVERY).settings == DEFAULT
    assert [fault.kind for fault in plan(EVERY).faults] == ["kill -9"]
    assert [fault.kind for fault in plan(EVERY // 2).faults] == ["kill -9"] * MOST_KILLS


@pytest.mark.parametrize("name", POINTS)
def test_a_crash_point_is_a_function_of_the_product(name: str) -> None:
    holder, attribute = resolve(POINTS[name].function)
    assert callable(getattr(holder, attribute))


@pytest.mark.parametrize(
    "function", ["xalen_batch.pipeline.record:reccord", "xalen_batch.pipeline.recorded:record"]
)
def test_a_crash_point_that_the_product_has_no_more_is_an_error(function: str) -> None:
    with pytest.raises((AttributeError, ImportError)):
        resolve(function)
