"""The parts of a chat that the simulation reads, and the values that it derives from them."""

import re
from dataclasses import dataclass
from typing import Any

from xalen_batch.backends.simulated.labels import classify, labels_in

_SENTENCE_END = re.compile(r"(?<=[.!?\u3002])\s+|\n+")
# Characters that are read, of the instructions (for labels and keys) and of the user's text.
MOST_READ = 4_000
LONGEST_SUMMARY = 200


@dataclass(frozen=True, slots=True)
class Prompt:
    """The texts of a chat; `seed` varies wording and made-up numbers."""

    system: str
    user: str
    seed: int

    @property
    def instructions(self) -> str:
        """The instructions: the system messages; without any, the user's text."""
        return (self.system or self.user)[:MOST_READ]

    @property
    def labels(self) -> tuple[str, ...]:
        return labels_in(self.instructions)

    @property
    def share(self) -> float:
        """A made-up confidence, from 0.70 to 0.99."""
        return 0.7 + self.seed % 30 / 100

    @property
    def summary(self) -> str:
        """The user's first sentence of more than 25 characters, or else the first sentence."""
        sentences = [
            sentence.strip()
            for sentence in _SENTENCE_END.split(self.user[:MOST_READ])
            if sentence.strip()
        ]
        said = next(
            (sentence for sentence in sentences if len(sentence) > 25),
            sentences[0] if sentences else "Nothing was said.",
        )
        return said[:LONGEST_SUMMARY]

    def classified(self, labels: tuple[str, ...]) -> str:
        return classify(self.user[:MOST_READ], labels)

    def guess(self, key: str) -> Any:
        """A value for a key of a JSON object, by the key's name."""
        name = key.lower()
        if self.labels and any(
            part in name
            for part in ("label", "categor", "class", "topic", "type", "sentiment", "answer")
        ):
            return self.classified(self.labels)
        if "sentiment" in name:
            return self.classified(("positive", "negative", "neutral"))
        if any(part in name for part in ("confidence", "score", "probab")):
            return self.share
        if name.startswith(("is_", "has_", "needs_")) or "urgent" in name:
            return self.classified(("urgent", "normal")) == "urgent"
        if "priority" in name or "urgency" in name:
            return self.classified(("low", "normal", "high"))
        return self.summary
