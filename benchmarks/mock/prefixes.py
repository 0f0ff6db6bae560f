"""A prefix cache as model servers have it: blocks of the prompt, least recently used out first."""

from collections import OrderedDict
from typing import Any, NamedTuple

import msgspec

from benchmarks.mock.answers import BYTES_PER_TOKEN

BLOCK = 64


class _Message(msgspec.Struct):
    content: Any = ""


class _Chat(msgspec.Struct):
    messages: list[_Message]


_chat = msgspec.json.Decoder(_Chat).decode


class Read(NamedTuple):
    """Tokens of one prompt."""

    prompt: int
    cached: int


class PrefixCache:
    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self._known: OrderedDict[int, None] = OrderedDict()

    def read(self, body: bytes) -> Read:
        """Look a request's prompt up, and keep it.

        A block counts as cached only behind cached blocks.
        """
        text = "\n".join(str(message.content) for message in _chat(body).messages).encode()
        known, cached, chain, is_hit = self._known, 0, 0, True
        for start in range(0, len(text) - BLOCK + 1, BLOCK):
            # The chain makes a block the same only after the same beginning.
            chain = hash((chain, text[start : start + BLOCK]))
            if chain in known:
                known.move_to_end(chain)
                cached += is_hit
                continue
            is_hit = False
            known[chain] = None
            if len(known) > self._blocks:
                known.popitem(last=False)
        prompt = max(1, len(text) // BYTES_PER_TOKEN)
        return Read(prompt, min(prompt, cached * BLOCK // BYTES_PER_TOKEN))
