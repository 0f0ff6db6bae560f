"""Numbers within bounds, and multiples."""

from fractions import Fraction
from math import ceil, floor
from typing import NamedTuple

from xalen_batch.backends.simulated.schemas.errors import NoValue
from xalen_batch.backends.simulated.schemas.shape import Shape, exact

# Widths of the range of a number that has no second bound.
WHOLE_WIDTH, WIDTH = 10, 1
# Multiples that are tried, until one is also a multiple in floating-point arithmetic.
MOST_MULTIPLES = 100
# Each variant moves by this share of the range.
GOLDEN = 0.618


class _Range(NamedTuple):
    least: Fraction
    most: Fraction
    # Bounds that are themselves excluded.
    excluded: frozenset[Fraction]

    def has(self, number: Fraction) -> bool:
        return self.least <= number <= self.most and number not in self.excluded


def number(shape: Shape, *, is_whole: bool, share: float, variant: int) -> int | float:
    """A number at a share (0..1) of its range. Raises NoValue."""
    step = shape.step
    if is_whole:
        # The whole multiples of p/q, in lowest terms, are those of p.
        step = Fraction(1 if step is None else step.numerator)
    # A range without a bound grows, so its variants differ.
    width = Fraction(WHOLE_WIDTH if is_whole else WIDTH)
    width = width + variant if step is None else max(width, 2 * step) + variant * step
    allowed = _range(shape, width)
    if step is not None:
        return _multiple(allowed, step, share, variant)
    return _between(allowed, (share + variant * GOLDEN) % 1)


def _range(shape: Shape, width: Fraction) -> _Range:
    lows = [shape.bound(name) for name in ("minimum", "exclusiveMinimum")]
    highs = [shape.bound(name) for name in ("maximum", "exclusiveMaximum")]
    low = max((exact(low) for low in lows if low is not None), default=None)
    high = min((exact(high) for high in highs if high is not None), default=None)
    # Zero, unless the only bound is below it.
    usual = Fraction(0) if high is None else min(Fraction(0), high - width)
    least = usual if low is None else low
    most = high if high is not None else least + width
    if least > most:
        raise NoValue("the least number that is allowed is above the greatest")
    excluded = frozenset(exact(bound) for bound in (lows[1], highs[1]) if bound is not None)
    return _Range(least, most, excluded)


def _multiple(allowed: _Range, step: Fraction, share: float, variant: int) -> int | float:
    first, last = ceil(allowed.least / step), floor(allowed.most / step)
    first += first * step in allowed.excluded
    last -= last * step in allowed.excluded
    if first > last:
        raise NoValue(f"no multiple of {_shown(step)} is within the bounds")
    size = last - first + 1
    start = int((size - 1) * Fraction(share)) + variant
    for offset in range(min(size, MOST_MULTIPLES)):
        found = _shown((first + (start + offset) % size) * step)
        if isinstance(found, int) or (found / float(step)).is_integer():
            return found
    raise NoValue(f"no multiple of {_shown(step)} is exact in floating-point arithmetic")


def _between(allowed: _Range, share: float) -> int | float:
    width = allowed.most - allowed.least
    exactly = allowed.least + width * Fraction(share)
    middle = (allowed.least + allowed.most) / 2
    for digits in (2, 6, 15):
        if allowed.has(rounded := round(exactly, digits)):
            return _shown(rounded)
    for candidate in (exactly, middle, allowed.least):
        if allowed.has(candidate) and allowed.has(Fraction(float(candidate))):
            return _shown(candidate)
    raise NoValue("no number is within the bounds")


def _shown(number: Fraction) -> int | float:
    try:
        return number.numerator if number.denominator == 1 else float(number)
    except OverflowError as error:
        raise NoValue("the bounds are out of range") from error
