"""Input files: as many lines of a size as a scenario asks for, the same bytes every time."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

CHAT, RERANK, EMBEDDINGS = "/v1/chat/completions", "/v1/rerank", "/v1/embeddings"
CHAT_MODEL, RERANK_MODEL, EMBEDDING_MODEL = "mistral-small-3-1", "bge-reranker-v2", "bge-m3"
_WORDS = "the parcel did not arrive on the day that was named and nobody can say where it is now "

Bodies = Iterator[tuple[str, object]]


@dataclass(frozen=True)
class Input:
    """A JSONL input file: `custom_id` r0, r1, … in order, all lines for one endpoint."""

    path: Path
    lines: int
    endpoint: str = CHAT

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def part(self, number: int, of: int) -> tuple[int, int]:
        """Lines [first, last) of one of `of` equal parts."""
        return self.lines * number // of, self.lines * (number + 1) // of


def chats(folder: Path, lines: int, line_bytes: int = 1000) -> Input:
    """Chat requests of so many bytes a line, each with another prompt."""
    frame = len(_line(CHAT, 0, _chat("")))
    prompt = _repeated(max(20, line_bytes - frame - 9))
    return _written(
        folder / f"chats-{lines}-{line_bytes}.jsonl",
        lines,
        CHAT,
        lambda n: _chat(f"{n:08} {prompt}"),
    )


def rankings(folder: Path, lines: int, documents: int = 100, document_bytes: int = 100) -> Input:
    """Rerank requests with so many documents each."""
    texts = [f"{place:03} {_repeated(document_bytes - 4)}" for place in range(documents)]

    def body(n: int) -> dict[str, object]:
        return {"model": RERANK_MODEL, "query": f"{n:08} where is my parcel?", "documents": texts}

    return _written(folder / f"rankings-{lines}-{documents}.jsonl", lines, RERANK, body)


def embeddings(folder: Path, lines: int, text_bytes: int = 60) -> Input:
    """Requests to embed one text each."""

    def body(n: int) -> dict[str, object]:
        return {"model": EMBEDDING_MODEL, "input": f"{n:08} {_repeated(text_bytes - 9)}"}

    return _written(folder / f"embeddings-{lines}-{text_bytes}.jsonl", lines, EMBEDDINGS, body)


def shared_prefixes(
    folder: Path, lines: int, prefixes: int = 100, prefix_bytes: int = 2048
) -> Input:
    """Chat requests with one of a few long beginnings each, in an order that mixes them."""
    order = [n % prefixes for n in range(lines)]
    random.Random(1).shuffle(order)

    def body(n: int) -> dict[str, object]:
        start = f"document {order[n]:06}: " + _repeated(prefix_bytes - 17)
        return {
            "model": CHAT_MODEL,
            "messages": [
                {"role": "system", "content": start},
                {"role": "user", "content": f"question {n:08}: {_repeated(180)}"},
            ],
        }

    return _written(folder / f"prefixes-{lines}-{prefixes}.jsonl", lines, CHAT, body)


def custom_ids(input_: Input) -> Iterator[str]:
    return (f"r{n}" for n in range(input_.lines))


def bodies(path: Path, first: int, last: int) -> list[bytes]:
    """The request bodies of lines [first, last), as JSON."""
    with path.open("rb") as file:
        return [json.dumps(json.loads(line)["body"]).encode() for line in islice(file, first, last)]


def _written(
    path: Path, lines: int, endpoint: str, body: Callable[[int], dict[str, object]]
) -> Input:
    if not path.exists():
        unfinished = path.with_suffix(".part")
        with unfinished.open("wb", buffering=1 << 20) as file:
            file.writelines(_line(endpoint, n, body(n)) for n in range(lines))
        unfinished.rename(path)
    return Input(path, lines, endpoint)


def _line(endpoint: str, n: int, body: dict[str, object]) -> bytes:
    return (
        json.dumps({"custom_id": f"r{n}", "method": "POST", "url": endpoint, "body": body}).encode()
        + b"\n"
    )


def _chat(prompt: str) -> dict[str, object]:
    return {"model": CHAT_MODEL, "messages": [{"role": "user", "content": prompt}]}


def _repeated(size: int) -> str:
    return (_WORDS * (size // len(_WORDS) + 1))[:size]
