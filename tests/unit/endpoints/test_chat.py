"""Our own count of a chat has the functions of the older form."""

from xalen_batch.endpoints import chat
from xalen_batch.endpoints.chunks import Joined

CALL = {"name": "find", "arguments": '{"where": "in the cellar"}'}
ASKED = {"messages": [{"role": "user", "content": "Where?"}]}


def test_a_function_call_is_written() -> None:
    empty, call = ({"choices": [{"message": message}]} for message in ({}, {"function_call": CALL}))
    assert chat.counted(call, ASKED).output_tokens > chat.counted(empty, ASKED).output_tokens


def test_the_functions_are_read_as_tools_are() -> None:
    tools = chat.counted({}, {**ASKED, "tools": [CALL]}).input_tokens
    assert tools > chat.counted({}, ASKED).input_tokens
    assert chat.counted({}, {**ASKED, "functions": [CALL]}).input_tokens == tools
    both = chat.counted({}, {**ASKED, "functions": [CALL], "tools": [CALL]}).input_tokens
    assert both > tools


def test_an_estimate_counts_as_the_bill_does() -> None:
    body = {"model": "m", **ASKED, "functions": [CALL]}
    form = chat.fit(body)
    assert isinstance(form, chat.ChatRequest)
    assert form.input_tokens(chat.tokens.count) == chat.counted({}, body).input_tokens


def test_a_streamed_function_call_has_begun() -> None:
    joined = Joined()
    for part in ({"name": "find", "arguments": ""}, {"arguments": CALL["arguments"]}):
        joined.add({"choices": [{"index": 0, "delta": {"function_call": part}}]})
    assert joined.has_begun
    assert chat.counted(joined.completion, ASKED).output_tokens > 5


def test_whole_numbers_of_any_size_are_part_of_the_prompt() -> None:
    content = [{"type": "text", "text": "Hi", "more": 2**70}]
    (piece,) = chat.pieces({"messages": [{"role": "user", "content": content}]})
    assert str(2**70) in str(piece)
