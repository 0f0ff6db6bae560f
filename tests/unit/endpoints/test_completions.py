"""Requests of text completions and of embeddings, whose texts may be token ids."""

import pytest

from xalen_batch.endpoints import completions, embeddings, tokens
from xalen_batch.endpoints.form import InvalidBody
from xalen_batch.endpoints.window import Window

WINDOW = Window("m", "nobody", 4)
TEXTS = [
    ("one two", ["one two"]),
    (["one", "two"], ["one", "two"]),
    ([1, 2, 3], [[1, 2, 3]]),
    ([[1, 2], [3]], [[1, 2], [3]]),
]


def completion(prompt, **values):
    return completions.fit({"model": "m", "prompt": prompt, **values})


def embedding(given, **values):
    return embeddings.fit({"model": "m", "input": given, **values})


@pytest.mark.parametrize(("given", "texts"), TEXTS)
def test_texts_and_token_ids_are_told_apart(given, texts):
    assert completion(given).texts == texts
    assert embedding(given).texts == texts


@pytest.mark.parametrize("given", [["one", 2], [1, [2]], ["one", [2]]])
def test_a_mixed_list_is_an_error(given):
    assert completion(given).param == "body.prompt"
    assert "mixes" in embedding(given).message


def test_each_prompt_has_answers_of_its_own():
    assert completion(["a", "b"], n=3).choices == 6
    assert completion("a", n=1, best_of=4, max_tokens=9).choices == 4
    assert completions.answers(b'{"model":"m","prompt":["a","b"],"n":2,"max_tokens":9.0}') == (4, 9)


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"prompt": []}, "body.prompt"),
        ({"prompt": None}, "body.prompt"),
        ({"prompt": "x", "n": 0}, "body.n"),
        ({"prompt": "x", "n": 3, "best_of": 2}, "body.best_of"),
        ({"prompt": "x", "max_tokens": -1}, "body.max_tokens"),
        ({"prompt": [-1]}, "body.prompt[0]"),
    ],
)
def test_completions_that_do_not_fit_say_where(values, param):
    found = completions.fit({"model": "m", **values})
    assert isinstance(found, InvalidBody)
    assert found.param.startswith(param.partition("[")[0])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"input": ""}, "Input 0 is empty"),
        ({"input": ["a", ""]}, "Input 1 is empty"),
        ({"input": []}, "length >= 1"),
        ({"input": [[]]}, "length >= 1"),
        ({"input": ["a"] * 2_049}, "2,049 inputs; the most of one request is 2,048"),
        ({"input": ["word " * 6_000] * 100}, "the most of one request is 300,000"),
        ({"input": "a", "encoding_format": "hex"}, "float or base64"),
        ({"input": "a", "dimensions": 0}, ">= 1"),
    ],
)
def test_embeddings_that_do_not_fit_say_why(values, words):
    found = embeddings.fit({"model": "m", **values})
    assert isinstance(found, InvalidBody)
    assert words in found.message


def test_token_ids_count_as_they_are():
    assert embedding([[1, 2], [3]]).input_tokens(tokens.count) == 3
    assert completion([1, 2, 3]).overflow(WINDOW) is None
    assert "5 tokens" in completion([1, 2, 3, 4, 5]).overflow(WINDOW).message
    assert "Input 1 has 5 tokens" in embedding([[1], [1, 2, 3, 4, 5]]).overflow(WINDOW).message


def test_embeddings_have_no_output_tokens():
    asked = embedding(["a", "b"])
    assert (asked.choices, asked.inputs, embeddings.answers(b"{}")) == (0, 2, (0, None))
