r"""The syntax of the patterns that can be compiled, parsed into a tree.

These patterns are regular expressions of the module `regex` in which every atom is one character or looks ahead by one:

    atoms           a  \n  .  \s  \d  \p{L}  [^\r\n\p{L}]  and  (?!\S)  (?=\s)  $, which match no text
    repetition      ?  *  +  {m,n}, greedy, lazy (`+?`) or possessive (`++`)
    groups          (...)  (?:...)  (?i:...), the last one around ASCII characters only
    alternatives    a|b, in the order of preference

    >>> tree = parse("(?:ab)+|[ab]")
    >>> a, b = Character(one_of("a")), Character(one_of("b"))
    >>> tree == Choice((Repeat(Series((a, b)), least=1, most=None, kind="greedy"), Character(one_of("ab"))))
    True

Everything else raises `Unsupported`. Such a pattern is not wrong: it can only not be compiled.
"""

import re
from dataclasses import dataclass
from typing import Literal

from lm.tokenizer.text.alphabet import all_characters, category, end_of_text, ignore_case, one_of, white_space

_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v"}
_MAX_REPETITIONS = 100

Kind = Literal["greedy", "lazy", "possessive"]


class Unsupported(Exception):
    """A pattern cannot be compiled; the message says which part of it."""


@dataclass(frozen=True)
class Character:
    """One character of a set; sets are integers, as in `alphabet`."""

    members: int


@dataclass(frozen=True)
class LookAhead:
    """No text, where the next character, or the end of the text, is in a set."""

    members: int


@dataclass(frozen=True)
class Series:
    """One part after the other."""

    parts: "tuple[Node, ...]"


@dataclass(frozen=True)
class Choice:
    """The first option with which the whole pattern matches."""

    options: "tuple[Node, ...]"


@dataclass(frozen=True)
class Repeat:
    """A body repeated at least `least` and at most `most` times; None means any number of times."""

    body: "Node"
    least: int
    most: int | None
    kind: Kind


Node = Character | LookAhead | Series | Choice | Repeat


def parse(pattern: str) -> Node:
    """Return the tree of a valid regular expression.

    Raises:
        Unsupported: It contains something else than the syntax above.
    """
    parser = _Parser(pattern)
    tree = parser.choice(ignores_case=False)
    if parser.rest:
        raise Unsupported(f"{parser.rest[:20]!r}")
    return tree


class _Parser:
    """A recursive descent over the pattern; each method consumes what it returns."""

    def __init__(self, pattern: str) -> None:
        self.rest = pattern

    def choice(self, *, ignores_case: bool) -> Node:
        options = [self._series(ignores_case)]
        while self._take(r"\|"):
            options.append(self._series(ignores_case))
        return Choice(tuple(options)) if len(options) > 1 else options[0]

    def _series(self, ignores_case: bool) -> Node:
        parts: list[Node] = []
        while self.rest and self.rest[0] not in "|)":
            parts.append(self._repeat(self._end(parts) if self._take(r"\$") else self._atom(ignores_case)))
        return parts[0] if len(parts) == 1 else Series(tuple(parts))

    def _end(self, before: list[Node]) -> Node:
        r"""Return the look-ahead of `$`, which also matches before a newline at the end of the text.

        So it is supported only where no newline can follow: after a possessive repetition that would have matched it.
        """
        match before:
            case [*_, Repeat(Character(members), _, None, "possessive")] if members & one_of("\n"):
                return LookAhead(end_of_text())
        raise Unsupported("'$', except after a possessive repetition that matches newlines")

    def _repeat(self, body: Node) -> Node:
        found = self._take(r"([?*+]|\{(\d+)(,?)(\d*)\})([?+]?)")
        if found is None:
            return body
        operator, least, comma, most, suffix = found.groups()
        bounds: tuple[int, int | None] = {"?": (0, 1), "*": (0, None), "+": (1, None)}.get(operator) or (
            int(least),
            int(most) if most else None if comma else int(least),
        )
        if max(bounds[0], bounds[1] or 0) > _MAX_REPETITIONS:
            raise Unsupported(f"{operator!r}, which is more than {_MAX_REPETITIONS} repetitions")
        if isinstance(body, LookAhead) or self._take(r"[?*+{]"):
            raise Unsupported(f"the repetition {found.group()!r}")
        kinds: dict[str, Kind] = {"": "greedy", "?": "lazy", "+": "possessive"}
        return Repeat(body, *bounds, kinds[suffix])

    def _atom(self, ignores_case: bool) -> Node:
        if found := self._take(r"\((?:\?(i?):|\?([=!])|(?!\?|\*))"):
            body = self.choice(ignores_case=ignores_case or bool(found[1]))
            if not self._take(r"\)"):
                raise Unsupported(f"{self.rest[:20]!r}")
            return _look_ahead(body, is_negative=found[2] == "!") if found[2] else body
        if self._take(r"\["):
            return self._bracket(ignores_case)
        if self._take(r"\."):
            return Character(one_of("\n") ^ all_characters())
        if found := self._take(r"[\^*+?{}()\]]"):
            raise Unsupported(f"{found.group()!r}")
        literal = self._item()
        return Character(_literals(literal, ignores_case) if literal else self._class(ignores_case))

    def _bracket(self, ignores_case: bool) -> Node:
        is_negated = bool(self._take(r"\^"))
        if is_negated and ignores_case:
            raise Unsupported("a negated set where the case is ignored")
        members = 0
        is_first = True
        while is_first or not self._take(r"\]"):
            if self._take(r"\[|--|&&|~~|\|\|"):  # in later versions of `regex`, sets in sets and operations on sets
                raise Unsupported("a set within a set")
            first = self._item()
            if self._take(r"-(?![-\]])"):
                last = self._item()
                if not first or not last or not (first + last).isascii():
                    raise Unsupported("a range that is not of ASCII characters")
                members |= _literals("".join(map(chr, range(ord(first), ord(last) + 1))), ignores_case)
            else:
                members |= _literals(first, ignores_case) if first else self._class(ignores_case)
            is_first = False
        return Character(members ^ all_characters() if is_negated else members)

    def _item(self) -> str | None:
        """Return a single character, plain or escaped, or None if the next item is none."""
        if found := self._take(r"\\([tnrfv]|[^\w\s]|\ )"):
            return _ESCAPES.get(found[1], found[1])
        found = self._take(r"[^\\]")
        return found.group() if found else None

    def _class(self, ignores_case: bool) -> int:
        r"""Return the set of a class such as `\s`."""
        if found := self._take(r"\\([sSdD])"):
            members = white_space() if found[1] in "sS" else category("Nd")
            return members if found[1] in "sd" else members ^ all_characters()
        if found := self._take(r"\\([pP])(?:\{([A-Z][a-z]?)\}|([A-Z]))"):
            if ignores_case:
                raise Unsupported(f"{found.group()!r} where the case is ignored")
            try:
                members = category(found[2] or found[3])
            except KeyError:
                raise Unsupported(f"{found.group()!r}") from None
            return members if found[1] == "p" else members ^ all_characters()
        raise Unsupported(f"{self.rest[:2]!r}")

    def _take(self, expression: str) -> re.Match[str] | None:
        found = re.match(expression, self.rest)
        if found:
            self.rest = self.rest[found.end() :]
        return found


def _literals(characters: str, ignores_case: bool) -> int:
    if ignores_case and not characters.isascii():
        raise Unsupported("a character that is not ASCII where the case is ignored")
    try:
        return one_of(ignore_case(characters) if ignores_case else characters)
    except KeyError as error:
        raise Unsupported(f"the character {error.args[0]!r}") from None


def _look_ahead(body: Node, *, is_negative: bool) -> LookAhead:
    if not isinstance(body, Character):
        raise Unsupported("a look-ahead at more than one character")
    return LookAhead(body.members ^ (all_characters() | end_of_text()) if is_negative else body.members)
