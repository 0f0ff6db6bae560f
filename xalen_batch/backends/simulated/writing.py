"""The simulated chat model's text: a label, JSON for a schema, a summary, or a plain reply."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from xalen_batch.backends.simulated.prompt import Prompt
from xalen_batch.backends.simulated.schemas import Filling

_KEY = re.compile(
    r"[\"'`](\w{1,40})[\"'`]\s*:|\bkeys?:?\s+((?:[\"'`]?\w+[\"'`]?(?:,\s*|\s+and\s+))*[\"'`]?\w+[\"'`]?)",
    re.I,
)
_LONG_WORD = re.compile(r"[^\W\d_]{6,}")

OPENINGS = (
    "Here is a short answer.",
    "In short:",
    "A brief answer follows.",
    "Taking the question as it stands:",
)
SENTENCES = (
    "The main point about {0} is what should happen next, and who does it.",
    "It helps to begin with {1}, since the rest depends on it.",
    "Check {0} first; most questions of this kind are settled there.",
    "Where {1} is unclear, ask for one concrete example.",
    "A small test shows quickly whether {0} behaves as expected.",
    "Write down what was decided about {1}, so that nobody has to guess later.",
    "If {0} changes, the conclusion may change with it.",
    "None of this needs to be done today, but the order matters.",
)


def write(prompt: Prompt, response_format: Any) -> str:
    """The content of one choice. Raises ValueError for an invalid JSON schema."""
    wanted = response_format if isinstance(response_format, Mapping) else {}
    if wanted.get("type") == "json_schema":
        schema = wanted.get("json_schema")
        return _json(
            Filling(prompt, schema.get("schema") if isinstance(schema, Mapping) else None).value()
        )
    if wanted.get("type") == "json_object":
        return _json({key: prompt.guess(key) for key in _keys(prompt.instructions)})
    if prompt.labels:
        return prompt.classified(prompt.labels)
    return prompt.summary if "summar" in prompt.instructions[:400].lower() else _reply(prompt)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _keys(instructions: str) -> list[str]:
    """The keys that the instructions for a JSON object name."""
    found: list[str] = []
    for quoted, listed in _KEY.findall(instructions):
        found += [quoted] if quoted else [key for key in re.findall(r"\w+", listed) if key != "and"]
    return list(dict.fromkeys(found)) or ["answer"]


def _reply(prompt: Prompt) -> str:
    topics = list(dict.fromkeys(word.lower() for word in _LONG_WORD.findall(prompt.user[:2000])))[
        :6
    ] or ["the question"]
    seed = prompt.seed
    said = [OPENINGS[seed % len(OPENINGS)]]
    for step in range(2 + seed % 5):
        first, second = topics[(seed + step) % len(topics)], topics[(seed + step + 1) % len(topics)]
        said.append(SENTENCES[(seed // 7 + step * 3) % len(SENTENCES)].format(first, second))
    return " ".join(said)


def stopped(text: str, stop: Any) -> str:
    """The text up to its first stop sequence; `stop` is one sequence or a list of them."""
    for sequence in [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []:
        if isinstance(sequence, str) and sequence:
            text = text.partition(sequence)[0]
    return text
