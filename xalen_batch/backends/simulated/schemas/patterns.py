"""Strings that a regular expression matches.

Python parses the expression; what only JavaScript has (`\\p{L}`, `(?<name>…)`) is rewritten first.
Assertions are not solved: a caller validates the string and asks for another.
"""

import re
import warnings
from collections.abc import Callable
from functools import lru_cache
from random import Random
from re import _constants as ops  # type: ignore[attr-defined]  # there is no public parser
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from xalen_batch.backends.simulated.schemas.errors import NoValue

LONGEST = 20_000
# Nodes that are written for one string.
MOST_STEPS = 50_000
# Characters for `.`, and for sets that exclude some.
USUAL = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
PRINTABLE = USUAL + " -_.,:;!?/@#$%&*+=()[]{}<>|~^'\"`\\"
# For sets that exclude all of these.
RARE = "\n\téüßñ日本"
_CATEGORIES = {
    ops.CATEGORY_DIGIT: "0123456789",
    ops.CATEGORY_WORD: USUAL + "_",
    ops.CATEGORY_SPACE: " ",
    ops.CATEGORY_NOT_DIGIT: USUAL[:52],
    ops.CATEGORY_NOT_WORD: " -.,",
    ops.CATEGORY_NOT_SPACE: USUAL,
}
# Unicode properties by characters that have them, as in a set.
_PROPERTIES = {"Lu": "A-Z", "N": "0-9", "P": "!?.,", "Z": " ", "S": "+", "L": "a-zA-Z", "Ll": "a-z"}


def text(pattern: str, dice: Random, least: int, most: int | None, *, asserts: bool) -> str:
    """A string that the pattern probably matches, with a length in the bounds if possible.

    `asserts`: write out the lookaheads too. Raises NoValue.
    """
    tree = _parsed(pattern)
    shortest = tree.getwidth()[0]
    if shortest > LONGEST:
        raise NoValue(f"the pattern wants more than {LONGEST} characters")
    low = max(0, least - shortest)
    high = low + 8 if most is None else max(low, min(low + 8, most - shortest))
    return _Writer(dice, dice.randint(low, high), asserts=asserts).sequence(tree)


@lru_cache(maxsize=256)
def _parsed(pattern: str) -> Any:
    """The syntax tree. Raises NoValue."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _parser.parse(_rewritten(pattern))
    except (re.error, OverflowError, RecursionError, ValueError) as error:
        raise NoValue(f"the pattern {pattern[:80]!r} cannot be read: {error}") from error


_REWRITTEN = re.compile(
    r"(?P<open>\[)|(?P<close>\])|\(\?<(?P<group>[A-Za-z_]\w*)>"
    r"|\\u\{(?P<code>[0-9a-fA-F]{1,6})\}|\\(?P<sign>[pP])\{(?:[^}=]*=)?(?P<property>\w+)\}|\\."
)


def _rewritten(pattern: str) -> str:
    """The pattern in Python's syntax."""
    is_set = False

    def python(found: re.Match[str]) -> str:
        nonlocal is_set
        if found["open"] or found["close"]:
            is_set = bool(found["open"])
        if found["group"]:
            return f"(?P<{found['group']}>"
        if found["code"]:
            return re.escape(chr(int(found["code"], 16)))
        if found["property"]:
            name = found["property"]
            members = _PROPERTIES.get(name) or _PROPERTIES.get(name[0], "a-z")
            if is_set:
                return members if found["sign"] == "p" else "_"
            return f"[{'^' if found['sign'] == 'P' else ''}{members}]"
        return found[0]

    return _REWRITTEN.sub(python, pattern)


class _Writer:
    """Writes one string, with about `extra` characters beyond the least."""

    def __init__(self, dice: Random, extra: int, *, asserts: bool) -> None:
        self._dice = dice
        self._extra = extra
        self._asserts = asserts
        self._groups: dict[int, str] = {}
        self._steps = 0

    def sequence(self, tree: Any) -> str:
        return "".join(self._node(operator, value) for operator, value in tree)

    def _node(self, operator: Any, value: Any) -> str:
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise NoValue("the pattern is too complex for the simulated models")
        write = _WRITERS.get(operator)
        return write(self, value) if write else ""

    def _literal(self, code: int) -> str:
        return chr(code)

    def _other(self, code: int) -> str:
        return self._one_of(PRINTABLE + RARE, frozenset(chr(code)))

    def _any(self, _: Any) -> str:
        return self._dice.choice(USUAL)

    def _set(self, members: Any) -> str:
        is_negated = members[0][0] is ops.NEGATE
        found = "".join(map(_members, members))
        if is_negated:
            return self._one_of(USUAL, frozenset(found)) or self._one_of(
                PRINTABLE + RARE, frozenset(found)
            )
        return self._one_of(found, frozenset())

    def _one_of(self, characters: str, without: frozenset[str]) -> str:
        left = [character for character in characters if character not in without]
        return self._dice.choice(left) if left else ""

    def _branch(self, value: Any) -> str:
        return self.sequence(self._dice.choice(value[1]))

    def _group(self, value: Any) -> str:
        number, _, _, inner = value
        written = self.sequence(inner)
        if number is not None:
            self._groups[number] = written
        return written

    def _repeat(self, value: Any) -> str:
        least, most, inner = value
        width = inner.getwidth()[0] or 1
        more = min(int(most) - least, self._extra // width)
        if self._dice.random() < 0.3:
            more = self._dice.randint(0, more)
        self._extra -= more * width
        return "".join(self.sequence(inner) for _ in range(least + more))

    def _again(self, number: int) -> str:
        return self._groups.get(number, "")

    def _conditional(self, value: Any) -> str:
        number, then, otherwise = value
        return self.sequence(then if number in self._groups else otherwise or ())

    def _ahead(self, value: Any) -> str:
        direction, inner = value
        return self.sequence(inner) if self._asserts and direction > 0 else ""


_WRITERS: dict[Any, Callable[[_Writer, Any], str]] = {
    ops.LITERAL: _Writer._literal,
    ops.NOT_LITERAL: _Writer._other,
    ops.ANY: _Writer._any,
    ops.IN: _Writer._set,
    ops.BRANCH: _Writer._branch,
    ops.SUBPATTERN: _Writer._group,
    ops.ATOMIC_GROUP: _Writer.sequence,
    ops.MAX_REPEAT: _Writer._repeat,
    ops.MIN_REPEAT: _Writer._repeat,
    ops.POSSESSIVE_REPEAT: _Writer._repeat,
    ops.GROUPREF: _Writer._again,
    ops.GROUPREF_EXISTS: _Writer._conditional,
    ops.ASSERT: _Writer._ahead,
}
# Characters of a range that are enough to choose from.
MOST_MEMBERS = 200


def _members(member: Any) -> str:
    """The characters of one member of a set."""
    operator, value = member
    if operator is ops.LITERAL:
        return chr(value)
    if operator is ops.RANGE:
        first, last = value
        return "".join(map(chr, range(first, min(last, first + MOST_MEMBERS) + 1)))
    return _CATEGORIES.get(value, "") if operator is ops.CATEGORY else ""
