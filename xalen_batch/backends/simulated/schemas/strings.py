"""Strings within lengths, of formats and patterns."""

from collections.abc import Iterator
from random import Random

from xalen_batch.backends.simulated.schemas import formats, patterns
from xalen_batch.backends.simulated.schemas.budget import Budget
from xalen_batch.backends.simulated.schemas.checks import fits, text_validator
from xalen_batch.backends.simulated.schemas.errors import NoValue
from xalen_batch.backends.simulated.schemas.shape import Shape

LONGEST = patterns.LONGEST
# Characters that are written in one step, plain ones and those of a pattern.
PER_STEP, PER_STEP_OF_PATTERN = 200, 5
# Strings that are tried for a pattern.
TRIES = 48
# Letters by which the variants of a string differ, if the pattern has room for them.
MORE = 3


def string(shape: Shape, guess: str, seed: int, variant: int, budget: Budget) -> str:
    """A string of a shape: `guess` if it fits. Raises NoValue."""
    least, most = int(shape.bound("minLength", 0)), shape.bound("maxLength")
    most = None if most is None else int(most)
    if most is not None and least > most:
        raise NoValue(f"minLength {least} is above maxLength {most}")
    if least > LONGEST:
        raise NoValue(f"simulated strings have at most {LONGEST} characters, not {least}")
    known = tuple(filter(formats.is_known, shape.formats))
    per_step = PER_STEP_OF_PATTERN if shape.patterns else PER_STEP
    if not shape.patterns and not known:
        budget.spend(least // per_step)
        return _free(guess, least, most, variant)
    checked = text_validator(shape.patterns, known, least, most)
    for candidate in _candidates(shape.patterns, known, guess, least, most, seed, variant):
        budget.spend(1 + len(candidate) // per_step)
        if fits(checked, candidate):
            return candidate
    wanted = [f"format {name}" for name in known]
    wanted += [f"pattern {pattern[:80]!r}" for pattern in shape.patterns]
    raise NoValue(f"found no string of {', '.join(wanted)} with the length that is asked for")


def _free(guess: str, least: int, most: int | None, variant: int) -> str:
    words = guess.split() if variant else []
    if 0 < variant < len(words):
        guess = " ".join(words[variant:])
    elif variant:
        # The number comes first, so strings that are cut differ too.
        guess = f"{patterns.USUAL[variant % len(patterns.USUAL)]}{variant} {guess}"
    return guess[:most].ljust(least, ".")


def _candidates(
    wanted: tuple[str, ...],
    known: tuple[str, ...],
    guess: str,
    least: int,
    most: int | None,
    seed: int,
    variant: int,
) -> Iterator[str]:
    dice = Random(seed * 1_000_003 + variant)
    # Classes such as `\w` differ between validators beyond ASCII.
    if not known and not variant and guess.isascii():
        yield guess[:most]
    for name in known:
        yield from formats.candidates(name, dice, least)
    for attempt in range(TRIES):
        written = [
            patterns.text(pattern, dice, least, most, asserts=attempt % 2 == 1)
            for pattern in wanted
        ]
        for one in written:
            missing = max(least - len(one), MORE if variant else 0)
            filler = "".join(dice.choices(patterns.USUAL, k=missing))
            yield from (one + filler, filler + one, one) if missing else (one,)
        if len(written) > 1:
            yield "".join(written)
            yield "".join(reversed(written))
