"""What the simulated chat model says: a label, JSON that fits the schema asked for, a summary, or a plain reply."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from xalen_batch.backends.simulated.labels import classify, labels_in

_SENTENCE_END = re.compile(r"(?<=[.!?\u3002])\s+|\n+")
_KEY = re.compile(r"[\"'`](\w{1,40})[\"'`]\s*:|\bkeys?:?\s+((?:[\"'`]?\w+[\"'`]?(?:,\s*|\s+and\s+))*[\"'`]?\w+[\"'`]?)", re.I)
_LONG_WORD = re.compile(r"[^\W\d_]{6,}")
DEEPEST_SCHEMA = 12
# Characters of a prompt that are searched for labels.
MOST_INSTRUCTIONS = 4_000

OPENINGS = ("Here is a short answer.", "In short:", "A brief answer follows.", "Taking the question as it stands:")
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


@dataclass(frozen=True, slots=True)
class Prompt:
    """The parts of a chat that the simulation reads. `seed` varies the wording, and nothing else."""

    system: str
    user: str
    seed: int

    @property
    def labels(self) -> tuple[str, ...]:
        return labels_in(self.system[:MOST_INSTRUCTIONS]) or (() if self.system else labels_in(self.user[:MOST_INSTRUCTIONS]))


def write(prompt: Prompt, response_format: Any) -> str:
    """The content of one choice."""
    wanted = response_format if isinstance(response_format, Mapping) else {}
    if wanted.get("type") == "json_schema":
        schema = wanted.get("json_schema")
        schema = schema.get("schema") if isinstance(schema, Mapping) else None
        return _json(_value(schema, prompt, "", schema, 0))
    if wanted.get("type") == "json_object":
        return _json({key: _guess(key, prompt) for key in _keys(prompt.system or prompt.user)})
    if prompt.labels:
        return classify(prompt.user, prompt.labels)
    return _summary(prompt.user) if "summar" in (prompt.system or prompt.user[:200]).lower() else _reply(prompt)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _summary(text: str, limit: int = 200) -> str:
    """The first sentence that says something."""
    sentences = [sentence.strip() for sentence in _SENTENCE_END.split(text[:4000]) if sentence.strip()]
    said = next((sentence for sentence in sentences if len(sentence) > 25), sentences[0] if sentences else "Nothing was said.")
    return said[:limit]


def _reply(prompt: Prompt) -> str:
    topics = list(dict.fromkeys(word.lower() for word in _LONG_WORD.findall(prompt.user[:2000])))[:6] or ["the question"]
    seed = prompt.seed
    said = [OPENINGS[seed % len(OPENINGS)]]
    for step in range(2 + seed % 5):
        first, second = topics[(seed + step) % len(topics)], topics[(seed + step + 1) % len(topics)]
        said.append(SENTENCES[(seed // 7 + step * 3) % len(SENTENCES)].format(first, second))
    return " ".join(said)


def _keys(text: str) -> list[str]:
    found = [key for quoted, listed in _KEY.findall(text) for key in ([quoted] if quoted else re.findall(r"\w+", listed)) if key != "and"]
    return list(dict.fromkeys(found)) or ["answer"]


def _guess(key: str, prompt: Prompt) -> Any:
    """A value for a key of a JSON object that has no schema."""
    name = key.lower()
    if prompt.labels and any(part in name for part in ("label", "categor", "class", "topic", "type", "sentiment", "answer")):
        return classify(prompt.user, prompt.labels)
    if "sentiment" in name:
        return classify(prompt.user, ("positive", "negative", "neutral"))
    if any(part in name for part in ("confidence", "score", "probab")):
        return _share(prompt)
    if name.startswith(("is_", "has_", "needs_")) or "urgent" in name:
        return classify(prompt.user, ("urgent", "normal")) == "urgent"
    if "priority" in name or "urgency" in name:
        return classify(prompt.user, ("low", "normal", "high"))
    return _summary(prompt.user)


def _share(prompt: Prompt) -> float:
    return 0.7 + prompt.seed % 30 / 100


def _value(schema: Any, prompt: Prompt, key: str, root: Any, depth: int) -> Any:
    """A value that fits a simple JSON schema."""
    schema = _resolved(schema, root)
    if "const" in schema:
        return schema["const"]
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return _choice(schema["enum"], prompt)
    kind = schema.get("type") or ("object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    if kind == "object":
        properties = schema.get("properties") if depth < DEEPEST_SCHEMA else None
        return {name: _value(part, prompt, name, root, depth + 1) for name, part in (properties or {}).items()}
    if kind == "array":
        size = max(1, schema.get("minItems") or 1) if depth < DEEPEST_SCHEMA else 0
        return [_value(schema.get("items"), prompt, key, root, depth + 1)] * min(size, 100)
    return _scalar(kind, schema, prompt, key)


def _resolved(schema: Any, root: Any) -> Mapping[str, Any]:
    """The schema behind `$ref` and the first alternative that is not null."""
    for _ in range(DEEPEST_SCHEMA):
        if not isinstance(schema, Mapping):
            return {}
        options = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
        if isinstance(options, list) and options:
            schema = next((one for one in options if not isinstance(one, Mapping) or one.get("type") != "null"), options[0])
        elif isinstance(schema.get("$ref"), str):
            target: Any = root
            for name in schema["$ref"].removeprefix("#").strip("/").split("/"):
                target = target.get(name) if name and isinstance(target, Mapping) else target
            schema = target
        else:
            return schema
    return {}


def _choice(options: list[Any], prompt: Prompt) -> Any:
    labels = [option for option in options if isinstance(option, str)]
    return classify(prompt.user, labels) if labels else options[prompt.seed % len(options)]


def _scalar(kind: str, schema: Mapping[str, Any], prompt: Prompt, key: str) -> Any:
    if kind == "null":
        return None
    if kind == "boolean":
        return bool(_guess("is_" + key, prompt))
    if kind in ("integer", "number"):
        low, high = schema.get("minimum", 0), schema.get("maximum", schema.get("minimum", 0) + 1)
        return int(low + round((high - low) * _share(prompt))) if kind == "integer" else round(low + (high - low) * _share(prompt), 2)
    guess = _guess(key, prompt)
    text = guess if isinstance(guess, str) else _summary(prompt.user)
    text = text[: schema["maxLength"]] if isinstance(schema.get("maxLength"), int) else text
    return text.ljust(schema["minLength"], ".") if isinstance(schema.get("minLength"), int) else text
