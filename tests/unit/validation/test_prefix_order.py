"""Lines whose prompts share a prefix run one after the other; other lines keep their order."""

import tracemalloc
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xalen_batch.endpoints import chat as chats
from xalen_batch.validation.prefix_order import (
    MAX_HASHES,
    MIN_BYTES,
    OFFSETS,
    PrefixHasher,
    PrefixIndex,
    first_hash,
    prefix_hashes,
)


def text(name: str, size: int) -> str:
    """A text of `size` bytes that shares no prefix with the text of another name."""
    return (f"{name} says: " * size)[:size]


def chat(*contents, **body):
    """A request whose first message is the system's."""
    roles = ["system", *["user", "assistant"] * len(contents)]
    return {
        "messages": [
            {"role": role, "content": content}
            for role, content in zip(roles, contents, strict=False)
        ],
        **body,
    }


def prompt(body):
    return chats.fit({"model": "m", **body}).cacheable


def hashes_of(body) -> list[int]:
    return prefix_hashes(prompt(body))


def index_of(prompts) -> PrefixIndex:
    hasher, index = PrefixHasher(), PrefixIndex()
    for each in prompts:
        index.add(hasher.hashes(each))
    return index


def order(*bodies) -> list[int]:
    return index_of(prompt(body) for body in bodies).running_order()


def shared(one, other) -> int:
    """The number of first hashes that two requests share."""
    pairs = list(zip(hashes_of(one), hashes_of(other), strict=False))
    return next((n for n, (a, b) in enumerate(pairs) if a != b), len(pairs))


def test_a_group_spread_over_the_file_runs_in_one_go_and_groups_in_the_order_of_their_first_lines():
    lines = [chat(text(name, 900), f"question {n}") for n, name in enumerate("ABCABCCBA")]
    assert order(*lines) == [0, 3, 8, 1, 4, 7, 2, 5, 6]


def test_groups_within_a_group_run_in_one_go():
    system = text("system", 2_000)
    lines = [chat(system, text(name, 1_000) + f" question {n}") for n, name in enumerate("XYXY")]
    # Of the first line with the system prompt, only the first hash is known.
    assert order(*lines, chat("other"), *lines) == [0, 1, 3, 6, 8, 2, 5, 7, 4]


def test_a_document_in_the_same_message_as_its_instructions_is_seen():
    lines = [
        chat(text("instructions", 1_100) + text(name, 700) + f"question {n}")
        for n, name in enumerate("ZXYXY")
    ]
    assert order(*lines) == [0, 1, 3, 2, 4]


def test_a_short_system_prompt_with_a_document_behind_it_is_seen():
    lines = [chat("Be brief.", text(name, 400), f"question {n}") for n, name in enumerate("XYXY")]
    assert order(*lines) == [0, 2, 1, 3]


def test_turns_of_a_conversation_too_short_for_a_hash_count_together():
    talk = [text(str(turn), 90) for turn in range(6)]
    lines = [chat(*(talk if n % 2 else reversed(talk)), f"question {n}") for n in range(4)]
    assert order(*lines) == [0, 2, 1, 3]


@pytest.mark.parametrize("size", [1, 28, MIN_BYTES - 1])
def test_a_prefix_that_is_too_short_moves_no_line(size):
    lines = [chat(text(name, size), text(str(n), 1_000)) for n, name in enumerate("ABABAB")]
    assert order(*lines) == [0, 1, 2, 3, 4, 5]


def test_long_and_short_questions_about_the_same_stay_in_order():
    system = text("system", 600)
    lines = [chat(system, text(str(n), 2_000 if n % 2 else 10)) for n in range(6)]
    assert order(*lines) == [0, 1, 2, 3, 4, 5]


def test_tools_come_before_the_messages_wherever_they_are_in_the_body():
    tools = [
        [{"type": "function", "function": {"name": name, "description": text(name, 400)}}]
        for name in "AB"
    ]
    messages = chat("Be brief.", text("document", 1_000))["messages"]
    lines = [
        (
            {"messages": messages, "tools": tools[n % 2]}
            if n < 2
            else {"tools": tools[n % 2], "messages": messages}
        )
        for n in range(4)
    ]
    assert order(*lines) == [0, 2, 1, 3]


def test_parts_and_calls_are_read_as_text_is():
    calls = [
        {
            "id": "1",
            "type": "function",
            "function": {"name": "f", "arguments": text("arguments", 300)},
        }
    ]
    lines = [
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": text("picture", 500)}]},
                    {"role": "user", "content": str(n)},
                ]
            }
            if n % 2
            else {
                "messages": [
                    {"role": "assistant", "content": None, "tool_calls": calls},
                    {"role": "user", "content": str(n)},
                ]
            }
        )
        for n in range(4)
    ]
    assert order(*lines) == [0, 2, 1, 3]


def test_a_hash_is_the_checksum_of_all_before_it_the_same_in_every_process():
    whole = text("A", 900)
    assert hashes_of(chat(whole)) == [crc32(whole[:size].encode()) for size in (256, 512, 768)]


def test_a_line_has_a_few_hashes_however_long_it_is():
    assert len(hashes_of(chat(text("A", 4_000)))) == 7
    assert len(hashes_of(chat(*[text(str(n), 1_000) for n in range(100)]))) == MAX_HASHES
    assert len(hashes_of(chat(text("A", OFFSETS[-1] + 1)))) == MAX_HASHES


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=700)


@given(st.lists(TEXT, min_size=1, max_size=4), TEXT, TEXT)
def test_a_hash_depends_on_nothing_behind_it(before, one, other):
    same = "".join(before)
    kept = sum(offset <= len(same.encode()) for offset in OFFSETS)
    assert shared(chat(same + one), chat(same + other)) >= kept
    assert shared(chat(*before, one), chat(*before, other)) >= len(hashes_of(chat(*before, "")))


@given(st.integers(0, 3_000), st.integers(0, 3_000))
def test_what_is_shared_is_seen_if_it_is_half_as_long_as_what_comes_before_it(before, size):
    """Two groups of lines that share a prefix up to their documents."""
    one, other = (
        chat(text("instructions", before) + text(name, size) + "question") for name in "XY"
    )
    seen = len(hashes_of(one)) > shared(one, other)
    assert seen or size + len("question") < max(MIN_BYTES, before / 2 + 1)


@given(st.lists(TEXT, max_size=5))
def test_the_first_hash_alone_is_the_first_of_all(pieces):
    assert [first_hash(pieces)] == (prefix_hashes(pieces)[:1] or [None])
    assert first_hash([piece.encode() for piece in pieces]) == first_hash(pieces)


def pieces(*names) -> list[str]:
    """A prompt with one hash for each name."""
    return [text(str(name), MIN_BYTES) for name in names]


LINES = st.lists(st.lists(st.sampled_from([0, 1, 2, 3]), max_size=5), max_size=60)


@given(LINES)
def test_each_line_is_there_once_and_those_that_begin_alike_are_neighbours(lines):
    found = index_of(pieces(*line) for line in lines).running_order()
    assert sorted(found) == list(range(len(lines)))
    firsts = {line[0]: number for number, line in reversed(list(enumerate(lines))) if line}
    for depth in range(1, 6):
        for start in {tuple(line[:depth]) for line in lines if len(line) >= depth}:
            alike = [
                place for place, line in enumerate(found) if tuple(lines[line][:depth]) == start
            ]
            # The first line of a group comes first, apart from the lines that share more of it.
            places = (
                alike
                if depth == 1
                else [place for place in alike if found[place] != firsts[start[0]]]
            )
            assert (
                places == list(range(places[0], places[0] + len(places))) if places else depth > 1
            )


def test_what_begins_like_no_other_line_is_read_no_further():
    hasher = PrefixHasher()
    made = [hasher.hashes(pieces(*line)) for line in ((10, 11, 12), (20, 21, 22), (10, 11, 13))]
    assert [hash_ for line in made for hash_ in line] == [
        first_hash(pieces(10)),
        first_hash(pieces(20)),
        *prefix_hashes(pieces(10, 11, 13)),
    ]


@given(
    st.lists(st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=4), max_size=20),
    st.sampled_from([10, MIN_BYTES, 700]),
)
def test_a_first_message_that_is_read_once_for_all_lines_changes_no_hash(lines, size):
    hasher, seen = PrefixHasher(), set()
    for line in lines:
        prompt = [text("system", size), *pieces(*line)]
        assert list(hasher.hashes(prompt)) == (
            prefix_hashes(prompt) if first_hash(prompt) in seen else prefix_hashes(prompt)[:1]
        )
        seen.add(first_hash(prompt))


@given(
    st.lists(
        st.lists(st.integers(0, 999), max_size=5),
        unique_by=lambda line: line[0] if line else object(),
        max_size=40,
    )
)
def test_lines_that_share_nothing_stay_in_order(lines):
    assert index_of(pieces(*line) for line in lines).running_order() == list(range(len(lines)))


@given(LINES, st.lists(st.integers(0, 60), max_size=4))
def test_lines_that_were_added_elsewhere_are_arranged_as_if_they_had_been_added_here(lines, places):
    hasher = PrefixHasher()
    made = [hasher.hashes(pieces(*line)) for line in lines]
    whole, joined, ends = PrefixIndex(), PrefixIndex(), sorted({*places, len(made)})
    for each in made:
        whole.add(each)
    for begin, end in zip([0, *ends], ends, strict=False):
        part = PrefixIndex()
        for each in made[begin:end]:
            part.add(each)
        joined.extend(part)
    assert joined.running_order() == whole.running_order()


def test_lines_that_share_a_long_prompt_take_no_more_memory() -> None:
    def peak(depth: int) -> int:
        index = PrefixIndex()
        for _ in range(20_000):
            index.add(range(1_000_000, 1_000_000 + depth))
        tracemalloc.start()
        try:
            assert index.running_order() == list(range(20_000))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(MAX_HASHES) < 1.2 * peak(2)
