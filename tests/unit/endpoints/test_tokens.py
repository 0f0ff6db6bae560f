"""Token counts: deterministic, never above the bound, and near what the real tokenizer says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xalen_batch import catalog
from xalen_batch.endpoints import tokens

TEXTS = st.text(st.characters(exclude_categories=()), max_size=200)
# Characters of every kind that `PIECES` tells apart, so that runs of them meet.
KINDS = st.text(st.sampled_from("aZé1٣!_. \t\n\r\x00\x1c\x7f\xa0я中😀\ud800\u3000"), max_size=60)
RUNS = st.lists(st.tuples(st.sampled_from("a1! \n\té"), st.integers(1, 40)), max_size=12).map(
    lambda runs: "".join(c * n for c, n in runs)
)


@given(st.one_of(TEXTS, KINDS, RUNS))
def test_runs_count_as_many_tokens_as_the_pattern_finds(text: str) -> None:
    assert tokens.count(text) == len(tokens.PIECES.findall(text))


def test_a_long_text_counts_as_many_tokens_as_the_pattern_finds() -> None:
    text = "ab  c\n  d!!! \n\n\n   é1  ------ inconsequentially " * 8_001 + "!"
    assert len(text) > tokens._MASKED
    assert tokens.count(text) == len(tokens.PIECES.findall(text))


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_texts_count_as_the_messages_of_a_chat(texts: list[str]) -> None:
    messages = [{"content": text} for text in texts]
    assert tokens.count_texts(texts) == tokens.count_chat(messages)


@given(TEXTS)
def test_a_count_is_never_more_than_the_bytes(text: str) -> None:
    assert 0 <= tokens.count(text) <= tokens.most(text)


@given(TEXTS, st.integers(0, 50))
def test_a_cut_is_the_longest_start_within_the_limit(text: str, limit: int) -> None:
    start = tokens.cut(text, limit)
    assert text.startswith(start)
    assert tokens.count(start) == min(limit, tokens.count(text))


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        # By Tekken 240911, the tokenizer of Mistral Small 3.1.
        ("", 0),
        ("hello world", 2),
        (
            (
                "My laptop crashed while I was trying to upload an invoice and I cannot log in to"
                " my account any more."
            ),
            22,
        ),
        ("Bonjour, je n'arrive plus à me connecter à mon compte depuis hier soir.", 19),
        ("我从昨天晚上开始就无法登录我的账户。", 15),
    ],
)
def test_a_count_is_near_the_real_tokenizers(text: str, exact: int) -> None:
    assert tokens.count(text) == pytest.approx(exact, rel=0.3)


def test_bytes_are_counted_as_utf8() -> None:
    assert tokens.most("aé漢😀") == 1 + 2 + 3 + 4


def test_a_chat_counts_text_parts_pictures_tools_and_the_template() -> None:
    bare = tokens.count_chat([{"role": "user", "content": ""}])
    assert bare == tokens.PER_CHAT + tokens.PER_MESSAGE
    assert tokens.count_chat([{"role": "user", "content": "one two"}]) == bare + 2
    assert (
        tokens.count_chat([{"role": "user", "content": [{"type": "text", "text": "one two"}]}])
        == bare + 2
    )
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 5000}}
    assert tokens.count_chat([{"role": "user", "content": [picture]}]) == bare + tokens.PER_IMAGE
    assert tokens.count_chat([{"role": "user", "content": ""}], tools=[{"name": "f"}]) > bare
    assert tokens.count_chat([{"role": "user", "content": ""}], counter=len) == bare


@pytest.mark.parametrize(
    ("part", "counted"),
    [
        (
            {
                "type": "input_audio",
                "input_audio": {"data": "A" * 4 * 1024 * 1024, "format": "wav"},
            },
            3 * 1024,
        ),
        ({"type": "input_audio", "input_audio": {"data": "A" * 100, "format": "mp3"}}, 1),
        ({"type": "audio_url", "audio_url": {"url": "https://example.com/a.mp3"}}, 1),
        (
            {
                "type": "file",
                "file": {
                    "filename": "a.pdf",
                    "file_data": "data:application/pdf;base64," + "A" * 400_000,
                },
            },
            5 * tokens.PER_IMAGE,
        ),
        ({"type": "file", "file": {"file_id": "file-1"}}, tokens.PER_IMAGE),
        (
            {"type": "video_url", "video_url": {"url": "data:video/mp4;base64," + "A" * 1_000_000}},
            12 * tokens.PER_IMAGE,
        ),
        ({"type": "image_url", "image_url": None}, tokens.PER_IMAGE),
        ({"type": "file", "file": 3}, tokens.PER_IMAGE),
    ],
)
def test_media_count_by_their_kind_and_not_as_text(part: dict[str, object], counted: int) -> None:
    bare = tokens.count_chat([{"role": "user", "content": ""}])
    assert tokens.count_chat([{"role": "user", "content": [part]}]) == bare + counted
    assert (
        tokens.count_chat([{"role": "user", "content": [part]}], counter=tokens.most)
        == bare + counted
    )


@pytest.mark.parametrize(
    "messages", [[None], ["x"], [{"content": 3}], [{"content": [None, 1, {"text": 2}]}], [{}]]
)
def test_messages_that_are_none_do_not_raise(messages: list[object]) -> None:
    assert tokens.count_chat(messages) > 0


def test_a_rerank_reads_the_query_with_every_document() -> None:
    one = tokens.count_rerank("where is it", ["here"])
    assert tokens.count_rerank("where is it", ["here", {"text": "here"}]) == 2 * one
    assert one == 3 + 1 + tokens.PER_PAIR


def test_the_reranker_has_no_exact_counter() -> None:
    assert tokens.exact_counter(catalog.read(None)["bge-reranker-v2"]) is None
