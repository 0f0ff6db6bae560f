"""The simulated chat model's text: a label, a summary, or a plain reply."""

import re
from typing import Any

from xalen_batch.backends.simulated.prompt import Prompt

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


def write(prompt: Prompt) -> str:
    """The text of a plain chat's choice."""
    if prompt.labels:
        return prompt.classified(prompt.labels)
    return prompt.summary if "summar" in prompt.instructions[:400].lower() else _reply(prompt)


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
