"""The budget of held bytes: accounts share it by a dynamic threshold, and one that holds none
always finds room.
"""

from collections.abc import Callable
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xalen_batch import memory
from xalen_batch.accounts.accounts import Caller, Owner
from xalen_batch.api.http.budget import Budget
from xalen_batch.config import MiB, Settings
from xalen_batch.errors import TooManyRequests, Unavailable

ALL = 300 * MiB


@pytest.fixture(autouse=True)
def _all(configure: Callable[..., None]) -> None:
    configure(held_bytes=ALL)


@pytest.fixture
def budget() -> Budget:
    return Budget("bodies", "Send fewer.", "bodies_limit")


def account(number: int, *, livemode: bool = True) -> Owner:
    return Owner(UUID(int=number), livemode)


def fill(budget: Budget, owner: Owner, step: int = MiB) -> int:
    """Take bytes until a refusal; returns the bytes held then."""
    try:
        while True:
            budget.take(owner, step)
    except (TooManyRequests, Unavailable):
        return budget.held(owner)


def test_an_account_alone_gets_a_fifth(budget: Budget) -> None:
    assert fill(budget, account(1)) == ALL // 5


def test_a_refusal_names_the_bytes_and_when_to_come_back(budget: Budget) -> None:
    fill(budget, account(1))
    with pytest.raises(TooManyRequests) as refusal:
        budget.take(account(1), MiB)
    assert (refusal.value.code, refusal.value.retry_after) == ("bodies_limit", 1.0)
    assert refusal.value.message.startswith(
        "The server holds 62,914,560 bytes of bodies for your account, and has no room for"
        " 1,048,576 more."
    )


def test_both_modes_of_an_account_have_their_own(budget: Budget) -> None:
    fill(budget, account(1))
    budget.take(account(1, livemode=False), MiB)


@given(greedy=st.integers(1, 15))
def test_beside_greedy_accounts_another_is_served(greedy: int) -> None:
    budget = Budget("bodies", "Send fewer.", "bodies_limit")
    for number in range(greedy):
        fill(budget, account(number))
    budget.take(account(1_000), MiB)
    assert sum(budget.held(account(number)) for number in range(greedy)) < ALL


def test_what_fits_nobody_is_503_for_an_account_that_holds_nothing(budget: Budget) -> None:
    budget.take(account(1), 40 * MiB)
    with pytest.raises(Unavailable) as refusal:
        budget.take(account(2), 66 * MiB)
    assert refusal.value.retry_after


def test_what_is_given_back_can_be_taken_again(budget: Budget) -> None:
    fill(budget, account(1))
    budget.give_back(account(1), budget.held(account(1)))
    assert budget.held(account(1)) == 0
    assert fill(budget, account(1)) == ALL // 5


def test_bytes_over_the_threshold_refuse_their_account_and_no_other(budget: Budget) -> None:
    budget.add(account(1), ALL // 2)
    with pytest.raises(TooManyRequests):
        budget.refuse_if_over(account(1))
    budget.refuse_if_over(account(2))
    budget.give_back(account(1), ALL // 2)
    budget.refuse_if_over(account(1))


def test_a_caller_is_its_account_whatever_its_key(budget: Budget) -> None:
    callers = [Caller(UUID(int=1), True, frozenset(), UUID(int=key)) for key in (1, 2)]
    with budget.holding(callers[0], MiB):
        assert budget.held(callers[1]) == MiB
    assert budget.held(callers[1]) == 0


def test_memory_goes_back_when_half_of_much_is_free_again(
    budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    trims: list[int] = []
    monkeypatch.setattr(memory, "trim", lambda: trims.append(1))
    for _ in range(40):
        budget.take(account(1), MiB)
    for _ in range(40):
        budget.give_back(account(1), MiB)
    assert len(trims) == 1


def test_a_budget_has_room_for_the_largest_body() -> None:
    with pytest.raises(ValueError, match="five times the largest body"):
        Settings(held_bytes=80 * MiB - 1, max_inbox_bytes=16 * MiB)
    assert Settings(held_bytes=80 * MiB, max_inbox_bytes=16 * MiB).held_bytes == 80 * MiB
