"""The circuit breaker: failures of a batch or of the backend, and who waits while it is open."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from xalen_batch import ids
from xalen_batch.worker.circuit_breaker import (
    DOUBTED_AFTER,
    RETRY_ALLOWANCE,
    WITNESS_SECONDS,
    Admission,
    Circuit,
    Source,
    State,
)

FAILURES, PAUSE, PATIENCE = 4, 15.0, 3_600.0


@dataclass
class Backend:
    """A circuit breaker on a clock that the test moves."""

    now: float = 0.0
    circuit: Circuit = field(init=False)

    def __post_init__(self) -> None:
        self.circuit = Circuit("model", lambda: self.now)

    @property
    def state(self) -> State:
        return self.circuit.state

    def answer(self, source: Source, times: int = 1) -> None:
        for _ in range(times):
            self.circuit.succeeded(source, self.circuit.sent(source))

    def fail(self, source: Source, times: int = 1, *, is_broken: bool = True) -> None:
        for _ in range(times):
            self.circuit.sent(source)
            self.circuit.failed(source, "HTTP 500", is_broken=is_broken)

    def probe(self, source: Source, lines: int = 1_000, *, is_spent: bool = False) -> int:
        """Send those of the lines that may be probes, let them fail, and return their number."""
        probes = self.circuit.probe(source, lines)
        for _ in range(probes):
            self.fail(source)
            self.circuit.probe_over(is_spent=is_spent)
        return probes


@pytest.fixture(autouse=True)
def _settings(configure: Callable[..., None]) -> None:
    configure(circuit_failures=FAILURES, circuit_pause=PAUSE, circuit_patience=PATIENCE)


@pytest.fixture
def backend() -> Backend:
    return Backend()


def source(of: Source | None = None) -> Source:
    """A batch of a new account, or of the same one."""
    return Source(ids.new() if of is None else of.account_id, ids.new())


def test_it_opens_when_the_only_source_fails_again_and_again(backend: Backend) -> None:
    only = source()
    backend.fail(only, FAILURES - 1)
    assert backend.state is State.CLOSED
    backend.fail(only)
    assert backend.state is State.OPEN
    assert backend.circuit.holds(only)
    assert backend.circuit.pause_of(only) == PAUSE


def test_success_between_failures_keeps_it_closed(backend: Backend) -> None:
    only = source()
    for _ in range(50):
        backend.fail(only, FAILURES - 1)
        backend.answer(only, 20)
    assert backend.state is State.CLOSED


@pytest.mark.parametrize("is_same_account", [False, True])
def test_a_source_that_fails_alone_opens_nothing(backend: Backend, is_same_account: bool) -> None:
    failing = source()
    other = source(failing if is_same_account else None)
    for _ in range(100):
        backend.fail(failing, FAILURES // 2)
        backend.answer(other)
        backend.fail(failing, FAILURES * 10)
    assert backend.state is State.CLOSED


def test_an_answer_from_before_the_failures_is_no_witness(backend: Backend) -> None:
    failing, other = source(), source()
    early = backend.circuit.sent(other)
    backend.answer(other, 100)
    backend.fail(failing, FAILURES - 1)
    # It was sent while the backend still worked.
    backend.circuit.succeeded(other, early)
    backend.fail(failing)
    assert backend.state is State.OPEN


def test_an_old_answer_is_no_witness(backend: Backend) -> None:
    failing, other = source(), source()
    backend.fail(failing)
    backend.answer(other)
    backend.fail(failing, FAILURES)
    assert backend.state is State.CLOSED
    backend.now = WITNESS_SECONDS + 1
    backend.fail(failing)
    assert backend.state is State.OPEN


def test_a_refusal_is_no_witness(backend: Backend) -> None:
    """A server that refuses a malformed request at once may be unable to run a good one."""
    failing, refused = source(), source()
    for _ in range(FAILURES):
        backend.circuit.succeeded(refused, backend.circuit.sent(refused), is_answer=False)
        backend.fail(failing)
    assert backend.state is State.OPEN


def test_an_outage_opens_it_whatever_was_answered_before(backend: Backend) -> None:
    sources = [source() for _ in range(5)]
    for one in sources:
        backend.answer(one, 50)
    for one in sources * FAILURES:
        backend.fail(one)
    assert backend.state is State.OPEN
    assert all(map(backend.circuit.holds, sources))


def test_retries_beyond_their_budget_open_it(backend: Backend) -> None:
    only = source()
    for _ in range(int(RETRY_ALLOWANCE) * 4):
        backend.fail(only)
        backend.circuit.succeeded(only, 0)
    assert backend.state is not State.CLOSED


def test_a_brownout_for_everybody_opens_it_and_one_sources_does_not(
    configure: Callable[..., None],
) -> None:
    configure(circuit_failures=1_000_000, circuit_pause=PAUSE)
    for others_fail in (True, False):
        backend, (first, second) = Backend(), (source(), source())
        held = set()
        for _ in range(int(RETRY_ALLOWANCE) * 2):
            for one in (first, second):
                backend.fail(one, int(one is first or others_fail))
                held |= set(filter(backend.circuit.holds, (first, second)))
                backend.answer(one)
        assert held == ({first, second} if others_fail else set())


def test_while_it_is_open_another_source_is_tried_at_once_with_one_line(backend: Backend) -> None:
    failing = source()
    backend.fail(failing, FAILURES)
    assert backend.circuit.admission == Admission(1, frozenset({failing}))
    assert not backend.circuit.holds(source())


def test_an_account_tries_it_with_a_few_batches_and_then_with_none(backend: Backend) -> None:
    first = source()
    backend.fail(first, FAILURES)
    batches = [first, source(first), source(first)]
    for batch in batches[1:]:
        assert backend.circuit.admission.excluded == frozenset(batches[: batches.index(batch)])
        backend.fail(batch)
    assert backend.circuit.admission == Admission(1, frozenset({(first.account_id, None)}))


def test_after_a_few_accounts_have_tried_it_nobody_does_until_the_pause_is_over(
    backend: Backend,
) -> None:
    tried = [source(), source(), source()]
    backend.fail(tried[0], FAILURES)
    for one in tried[1:]:
        backend.fail(one)
    assert backend.circuit.admission.lines == 0
    # After the pause other accounts come first, since one caller may own these three.
    backend.now = PAUSE
    assert backend.circuit.admission == Admission(1, frozenset(tried))
    backend.now = PAUSE * 1.2
    assert backend.circuit.admission == Admission(1)


def test_accounts_that_failed_while_others_were_answered_keep_nobody_from_trying(
    backend: Backend,
) -> None:
    known = [source() for _ in range(10)]
    for one in known:
        backend.fail(one)
    backend.answer(source())
    backend.now = WITNESS_SECONDS + 1
    for one in known:
        backend.fail(one, FAILURES)
    assert backend.state is State.OPEN
    assert backend.circuit.admission.lines == 1


def test_the_first_answer_to_another_source_closes_it(backend: Backend) -> None:
    failing = source()
    backend.fail(failing, FAILURES)
    backend.answer(source())
    assert backend.state is State.CLOSED
    assert backend.circuit.admission is None
    assert backend.circuit.pause_of(failing) == 0
    # From now on there is a witness: the batch is at fault.
    backend.fail(failing, 1_000)
    assert backend.state is State.CLOSED


def test_an_answer_to_a_request_from_before_does_not_close_it(backend: Backend) -> None:
    failing, other = source(), source()
    early = backend.circuit.sent(other)
    backend.fail(failing, FAILURES)
    backend.circuit.succeeded(other, early)
    assert backend.state is State.OPEN


def test_after_the_pause_one_line_is_a_probe_and_its_failure_opens_it_again(
    backend: Backend,
) -> None:
    only = source()
    backend.fail(only, FAILURES)
    assert backend.circuit.probe(only, 10) == 0
    backend.now = PAUSE
    assert backend.state is State.HALF_OPEN
    assert backend.circuit.probe(only, 10) == 1
    # One round at a time.
    assert backend.circuit.probe(only, 10) == 0
    assert backend.circuit.admission == Admission(1, frozenset({only}))
    backend.fail(only)
    backend.circuit.probe_over(is_spent=False)
    assert backend.state is State.OPEN
    assert backend.circuit.pause_of(only) == PAUSE


def test_a_probe_that_is_answered_closes_it(backend: Backend) -> None:
    only = source()
    backend.fail(only, FAILURES)
    backend.now = PAUSE
    backend.circuit.probe(only, 10)
    backend.answer(only)
    backend.circuit.probe_over(is_spent=False)
    assert backend.state is State.CLOSED


def test_an_outage_shorter_than_the_patience_costs_no_line_and_a_batch_that_can_never_succeed_ends(
    backend: Backend,
) -> None:
    only, left, ended_within = source(), 20_000, 0.0
    backend.fail(only, FAILURES)
    while left:
        backend.now += PAUSE
        is_spent = not backend.circuit.is_patient
        probes = backend.probe(only, left, is_spent=is_spent)
        assert probes >= 1
        if is_spent:
            left -= probes
        else:
            assert (probes, backend.circuit.width) == (1, 1)
        ended_within = backend.now
    assert PATIENCE <= ended_within < PATIENCE + 20 * PAUSE


def test_patience_begins_anew_after_an_answer(backend: Backend) -> None:
    only = source()
    backend.fail(only, FAILURES)
    backend.now = PATIENCE + 1
    assert not backend.circuit.is_patient
    backend.probe(only, is_spent=True)
    assert backend.circuit.width == 2
    backend.answer(only)
    backend.fail(only, FAILURES)
    assert backend.circuit.is_patient
    assert backend.circuit.width == 1


def test_an_account_for_which_only_the_backend_is_busy_is_doubted_whatever_its_batches(
    backend: Backend,
) -> None:
    busy, other = source(), source()
    for _ in range(DOUBTED_AFTER):
        backend.fail(source(busy), is_broken=False)
    assert not backend.circuit.is_doubted(busy)
    backend.answer(other)
    assert backend.circuit.is_doubted(busy)
    assert not backend.circuit.is_doubted(other)
    backend.answer(busy)
    assert not backend.circuit.is_doubted(busy)


def test_being_busy_opens_nothing(backend: Backend) -> None:
    backend.fail(source(), 10_000, is_broken=False)
    assert backend.state is State.CLOSED


def test_what_it_remembers_is_bounded(backend: Backend) -> None:
    for _ in range(3_000):
        backend.answer(source())
    assert len(backend.circuit._records) == len(backend.circuit._accounts) == 1_000
