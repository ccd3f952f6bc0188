"""The notation of a grammar: text -> lexicons, rules and slots. stories.txt describes it at its head."""

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import NoReturn

from lm.errors import UserError

_ITEM = re.compile(r"<(?P<rule>[^<>]*)>|{(?P<phrase>[^{}]*)}|\[(?P<group>[^\[\]]*)\]|(?P<paragraph> *// *)")


@dataclass(frozen=True, eq=False)
class Lexicon:
    """The words that some variables may take, each a mapping of "" to itself and of attributes to their texts."""

    line: int
    variables: tuple[str, ...]
    attributes: tuple[str, ...]
    words: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Slot:
    """A phrase about one variable, such as {a toy}, and its text for each word of the lexicon."""

    phrase: str
    variable: str
    texts: tuple[str, ...]

    @cached_property
    def clash(self) -> tuple[str, str] | None:
        """A text and one that it begins, or None if the texts are prefix-free."""
        ordered = sorted(self.texts)  # a text stands directly before one that it begins
        return next(((a, b) for a, b in zip(ordered, ordered[1:]) if b.startswith(a)), None)


@dataclass(frozen=True, eq=False)
class Rule:
    """Alternatives with the numbers of their lines; its name is written <name> or, without one, [a|b]."""

    name: str
    line: int
    alternatives: list[tuple[int, "Items"]] = field(default_factory=list)


Items = tuple[str | Slot | Rule, ...]


class Notation:
    """What stands in `source`, as written; `name` stands for the source in messages.

    Raises:
        UserError: the source has a mistake; the message names its line.
    """

    def __init__(self, source: str, name: str) -> None:
        self.name = name
        self.lexicons: dict[str, Lexicon] = {}  # by variable
        self.rules: dict[str, Rule] = {}
        self.slots: dict[str, Slot] = {}  # by phrase
        self._groups: dict[str, Rule] = {}  # by what stands between the brackets
        self._read(source)

    def fail(self, number: int, message: str) -> NoReturn:
        """Refuse the line `number`."""
        raise UserError(f"{self.name}:{number}: {message}")

    def _read(self, source: str) -> None:
        """Headings stand at the margin, what belongs to them is indented."""
        bodies: list[tuple[Rule, int, str]] = []
        current: Lexicon | Rule | None = None
        for number, text in enumerate(source.splitlines(), start=1):
            content = text.strip()
            if not content or content.startswith("#"):
                continue
            if text[0] != " ":
                current = self._read_heading(number, content)
            elif isinstance(current, Lexicon):
                self._read_words(number, content, current)
            elif current is not None:
                bodies.append((current, number, content))
            else:
                self.fail(number, "expected a heading, 'words ...' or 'rule ...', at the margin")
        # Rules may call rules that stand below them.
        for rule, number, content in bodies:
            rule.alternatives.append((number, self._items(number, content)))
        for rule in self.rules.values():
            if not rule.alternatives:
                self.fail(rule.line, f"rule {rule.name} has no alternatives; indent them below it")
        for variable, lexicon in self.lexicons.items():
            if len(lexicon.words) < len(lexicon.variables):
                self.fail(lexicon.line, f"{{{variable}}}: fewer words than variables, which never share one")

    def _read_heading(self, number: int, content: str) -> Lexicon | Rule:
        kind, _, rest = content.partition(" ")
        if kind == "rule":
            if not re.fullmatch(r"[a-z][a-z-]*", rest):
                self.fail(number, f"expected a rule's name of small letters and hyphens, got {rest!r}")
            if rest in self.rules:
                self.fail(number, f"rule <{rest}> stands already at line {self.rules[rest].line}")
            self.rules[rest] = Rule(f"<{rest}>", number)
            return self.rules[rest]
        if kind != "words":
            self.fail(number, f"expected 'words ...' or 'rule ...', got {content!r}; indent what belongs to a heading")
        names, *attributes = [column.strip() for column in rest.split("|")]
        lexicon = Lexicon(number, tuple(name.strip() for name in names.split(",")), tuple(attributes))
        for name in (*lexicon.variables, *attributes):
            if not re.fullmatch(r"[a-z]{2,}", name):
                self.fail(number, f"expected names of two or more small letters, got {name!r}")
        for variable in lexicon.variables:
            if variable in self.lexicons:
                self.fail(number, f"the variable {{{variable}}} is declared twice")
            self.lexicons[variable] = lexicon
        return lexicon

    def _read_words(self, number: int, content: str, lexicon: Lexicon) -> None:
        values, *texts = [column.strip() for column in content.split("|")]
        if len(texts) != len(lexicon.attributes) or "" in texts:
            self.fail(number, f"expected {' | '.join(('words', *lexicon.attributes))}, got {content!r}")
        for value in values.split(","):
            if not value.strip():
                self.fail(number, "an empty word between two commas")
            lexicon.words.append({"": value.strip()} | dict(zip(lexicon.attributes, texts)))

    def _items(self, number: int, content: str) -> Items:
        items: list[str | Slot | Rule] = []
        position = 0
        for match in _ITEM.finditer(content):
            items += self._literal(number, content[position : match.start()])
            position = match.end()
            if (name := match["rule"]) is not None:
                if name not in self.rules:
                    self.fail(number, f"there is no rule <{name}>{_suggest(name, self.rules)}")
                items.append(self.rules[name])
            elif (phrase := match["phrase"]) is not None:
                items.append(self._slot(number, phrase))
            elif (group := match["group"]) is not None:
                items.append(self._group(number, group))
            else:
                items.append("\n\n")
        return (*items, *self._literal(number, content[position:]))

    def _literal(self, number: int, text: str) -> list[str]:
        if stray := re.search(r"[][{}<>|]", text):
            self.fail(number, f"stray {stray[0]!r} in {text!r}")
        return [text] if text else []

    def _group(self, number: int, content: str) -> Rule:
        """[a|b], a rule without a name; equal groups are one rule, so that alternatives which share one compare."""
        if content not in self._groups:
            parts = [(number, self._items(number, part)) for part in content.split("|")]
            if len(parts) < 2 or any(not items for _, items in parts):
                self.fail(number, f"expected two or more non-empty choices in [{content}]")
            self._groups[content] = Rule(f"[{content}]", number, parts)
        return self._groups[content]

    def _slot(self, number: int, phrase: str) -> Slot:
        """The slot of a phrase: its variable is the one it names, or the first one that has the attribute it names."""
        if phrase in self.slots:
            return self.slots[phrase]
        if not re.fullmatch(r"[A-Za-z]+\.[A-Za-z]+|[A-Za-z]+( [A-Za-z]+)*", phrase):
            self.fail(number, f"expected words, such as {{a toy}}, or {{toy.color}}, got {{{phrase}}}")
        owner, _, attribute = phrase.lower().partition(".")
        if attribute:
            names = [attribute]
            variables = [owner] if owner in self.lexicons else []
        else:
            names = owner.split(" ")
            variables = [name for name in names if name in self.lexicons] or [
                variable for variable, lexicon in self.lexicons.items() if set(names) & set(lexicon.attributes)
            ][:1]
        if len(variables) != 1:
            known = [*self.lexicons, *(a for lexicon in self.lexicons.values() for a in lexicon.attributes)]
            wanted = owner.split(" ")[0]
            problem = "two variables" if variables else f"no variable or attribute{_suggest(wanted, known)}"
            self.fail(number, f"{{{phrase}}} names {problem}")
        (variable,) = variables
        lexicon = self.lexicons[variable]
        if not set(names) & {variable, *lexicon.attributes}:
            self.fail(number, f"{{{variable}}} has no attribute {names[0]!r}{_suggest(names[0], lexicon.attributes)}")
        texts = tuple(_render(names, word, variable) for word in lexicon.words)
        if phrase != phrase.lower():
            texts = tuple(text[0].upper() + text[1:] for text in texts)
        self.slots[phrase] = Slot(phrase, variable, texts)
        return self.slots[phrase]


def _render(names: list[str], word: dict[str, str], variable: str) -> str:
    """The words of a phrase with the variable and its attributes filled in, and "a" made "an" before a vowel."""
    parts = [word[""] if name == variable else word.get(name, name) for name in names]
    for i, following in enumerate(parts[1:]):
        if parts[i] == "a" and following[0] in "aeiou":
            parts[i] = "an"
    return " ".join(parts)


def _suggest(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
