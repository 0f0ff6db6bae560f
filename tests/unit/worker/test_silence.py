"""The silence of a backend: the time since which it has failed every request."""

from xalen_batch.worker.silence import REPORTED_AFTER, Silence


def test_it_is_told_from_the_first_failure_on_with_the_last_one_until_there_is_an_answer() -> None:
    now = [100.0]
    silence = Silence(lambda: now[0])
    silence.failed("first")
    assert silence.report is None
    now[0] += REPORTED_AFTER
    silence.failed("last")
    assert silence.report == (REPORTED_AFTER, "last")
    silence.over()
    assert silence.report is None
    silence.failed("again")
    assert silence.report is None
