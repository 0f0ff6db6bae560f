"""Split: each line in exactly one task, in order, within the limits."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xalen_batch.jsonl import Span
from xalen_batch.pipeline import split
from xalen_batch.pipeline.split import Split

LENGTHS = st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(1, 200)), min_size=1, max_size=300)


@dataclass
class Limits:
    task_lines: int = 200
    task_bytes: int = 4 << 20


def slices(lines):
    """Slices of lines given as (model, length)."""
    whole, offset = Split(), 0
    for number, (model, length) in enumerate(lines, start=1):
        whole.add(model, Span(number, offset, length))
        offset += length + 1
    return list(whole.slices())


@given(LENGTHS, st.integers(1, 30), st.integers(1, 500))
def test_each_line_is_in_one_task_of_its_model_in_order_and_within_the_limits(lines, task_lines, task_bytes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split, "settings", lambda: Limits(task_lines, task_bytes))
        cut = slices(lines)
    numbers = [span.line_no for slice in cut for span in slice.spans]
    assert sorted(numbers) == list(range(1, len(lines) + 1))
    for model in {model for model, _ in lines}:
        of_model = [span.line_no for slice in cut if slice.model == model for span in slice.spans]
        assert of_model == [number for number, (name, _) in enumerate(lines, start=1) if name == model]
    for slice in cut:
        assert 1 <= len(slice.spans) <= task_lines
        assert len(slice.spans) == 1 or sum(span.length for span in slice.spans) <= task_bytes


@pytest.mark.parametrize(
    ("lines", "task_lines", "tasks"),
    [(1, 10, 1), (10, 10, 1), (11, 10, 2), (80, 10, 8), (200, 25, 8), (1_000, 125, 8), (1_600, 200, 8), (50_000, 200, 250)],
)
def test_a_small_batch_spreads_over_small_tasks_and_a_large_one_has_full_ones(lines, task_lines, tasks):
    assert split.task_lines(lines) == task_lines
    assert len(slices([("a", 100)] * lines)) == tasks


def test_models_take_turns():
    assert [slice.model for slice in slices([("a", 9)] * 20 + [("b", 9)] * 30)] == ["a", "b", "a", "b", "b"]
