"""Split: each line in exactly one task, in running order, within the limits."""

from dataclasses import dataclass
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xalen_batch.jsonl import Span
from xalen_batch.validation import split
from xalen_batch.validation.prefix_order import PrefixHasher
from xalen_batch.validation.split import Split

# Model, length, and a letter: lines with the same letter share a prefix.
LINES = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]), st.integers(1, 200), st.sampled_from([None, "x", "y"])
    ),
    min_size=1,
    max_size=300,
)


@dataclass
class Limits:
    task_lines: int = 1_000
    task_bytes: int = 4 << 20


@pytest.fixture(autouse=True)
def _limits(monkeypatch):
    monkeypatch.setattr(split, "settings", Limits)


def whole(lines):
    """Lines given as (model, length), or as (model, length, letter)."""
    made, hasher, offset = Split(), PrefixHasher(), 0
    for number, (model, length, *letter) in enumerate(lines, start=1):
        made.add(
            model,
            Span(number, offset, length),
            hasher.hashes([each * 300 for each in letter if each]),
        )
        offset += length + 1
    return made


def slices(lines):
    return list(whole(lines).slices())


def numbers(cut, model):
    return [span.line_no for slice in cut if slice.model == model for span in slice.spans]


@given(LINES, st.integers(1, 30), st.integers(1, 500))
def test_each_line_is_in_one_task_of_its_model_in_running_order_and_within_the_limits(
    lines, task_lines, task_bytes
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split, "settings", lambda: Limits(task_lines, task_bytes))
        cut = slices(lines)
    assert sorted(span.line_no for slice in cut for span in slice.spans) == list(
        range(1, len(lines) + 1)
    )
    for name in {model for model, *_ in lines}:
        of_model = [
            (number, letter)
            for number, (model, _, letter) in enumerate(lines, start=1)
            if model == name
        ]
        first = {letter: number for number, letter in reversed(of_model)}
        assert numbers(cut, name) == [
            number
            for number, letter in sorted(
                of_model, key=lambda line: (first[line[1]] if line[1] else line[0], line[0])
            )
        ]
    for slice in cut:
        assert 1 <= len(slice.spans) <= task_lines
        assert len(slice.spans) == 1 or sum(span.length for span in slice.spans) <= task_bytes


@given(LINES, st.integers(1, 30))
def test_a_task_has_all_positions_up_to_the_next(lines, task_lines):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split, "settings", lambda: Limits(task_lines))
        cut = slices(lines)
    positions = [slice.position for slice in cut]
    assert positions[0] == 0
    assert [slice.position + len(slice.spans) for slice in cut] == [*positions[1:], len(lines)]


@pytest.mark.parametrize(
    ("lines", "task_lines", "tasks"),
    [
        (1, 25, 1),
        (25, 25, 1),
        (26, 25, 2),
        (200, 25, 8),
        (1_000, 125, 8),
        (8_000, 1_000, 8),
        (50_000, 1_000, 50),
    ],
)
def test_a_small_batch_spreads_over_small_tasks_and_a_large_one_has_full_ones(
    lines, task_lines, tasks
):
    assert split.task_lines(lines) == task_lines
    assert len(slices([("a", 50)] * lines)) == tasks


def test_a_task_has_no_more_bytes_than_one_read_takes():
    assert [len(slice.spans) for slice in slices([("a", 4_096)] * 50_000)][:2] == [1_000, 1_000]
    assert [len(slice.spans) for slice in slices([("a", 16_384)] * 50_000)][:2] == [256, 256]


def test_models_take_turns():
    assert [slice.model for slice in slices([("a", 9)] * 50 + [("b", 9)] * 75)] == [
        "a",
        "b",
        "a",
        "b",
        "b",
    ]


def test_lines_that_begin_alike_are_grouped_within_their_model():
    cut = slices(
        [("a", 9, "x"), ("b", 9, "x"), ("a", 9, "y"), ("b", 9, None), ("a", 9, "x"), ("b", 9, "x")]
    )
    assert (numbers(cut, "a"), numbers(cut, "b")) == ([1, 5, 3], [2, 6, 4])


@given(LINES, st.integers(0, 300), st.integers(0, 5))
def test_what_was_read_apart_is_cut_as_if_it_had_been_read_at_once(lines, place, blank_lines):
    """The lines behind a position, after some blank ones, numbered as if the file began there."""
    at_once, apart, rest, offset = Split(), Split(), Split(), 0
    for number, (model, length, _) in enumerate(lines, start=1):
        is_behind = number > place
        at_once.add(model, Span(number + blank_lines * is_behind, offset, length))
        (rest if is_behind else apart).add(model, Span(number - place * is_behind, offset, length))
        offset += length + 1
    apart.extend(rest, lines_before=min(place, len(lines)) + blank_lines)
    assert list(apart.slices()) == list(at_once.slices())
    assert (apart.models, apart.lines, apart.tokens) == (
        at_once.models,
        len(lines),
        sum(ceil(length / 4) for _, length, _ in lines),
    )
