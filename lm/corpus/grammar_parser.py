"""Parse the text of a grammar into lexicons, rules and slots. The comment at the top of stories.txt describes it."""

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import NoReturn

from lm.errors import UserError

_ITEM = re.compile(r"<(?P<rule>[^<>]*)>|{(?P<phrase>[^{}]*)}|\[(?P<group>[^\[\]]*)\]|(?P<paragraph> *// *)")


@dataclass(frozen=True, eq=False)
class Lexicon:
    """The words that some variables may take.

    Each word is a mapping from the names of its attributes to their texts, and from "" to the word itself.
    """

    line: int
    variables: tuple[str, ...]
    attributes: tuple[str, ...]
    words: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Slot:
    """A phrase about one variable, such as {a toy}, and its text for each word of the variable's lexicon."""

    phrase: str
    variable: str
    texts: tuple[str, ...]

    @property
    def repeats_word(self) -> bool:
        """Whether the phrase has the word itself, as {a toy} has, and not only attributes of it, as {toy.color}."""
        return self.variable in self.phrase.lower().split()

    @cached_property
    def prefix_clash(self) -> tuple[str, str] | None:
        """Two texts of which the first is equal to or a prefix of the second, or None if the texts are prefix-free."""
        ordered = sorted(self.texts)  # if a text is a prefix of others, one of them comes right after it
        return next(((a, b) for a, b in pairwise(ordered) if b.startswith(a)), None)


@dataclass(frozen=True, eq=False)
class Rule:
    """A list of alternatives, each with its line number. `name` is <rule> or, for a rule without a name, [a|b]."""

    name: str
    line: int
    alternatives: list[tuple[int, "Items"]] = field(default_factory=list)


Item = str | Slot | Rule
Items = tuple[Item, ...]


class GrammarParser:
    """The lexicons, rules and slots in `source`. Error messages call the source `name`.

    Raises:
        UserError: If the source has a mistake. The message gives its line.
    """

    def __init__(self, source: str, name: str) -> None:
        self.name = name
        self.lexicons: dict[str, Lexicon] = {}  # by variable
        self.rules: dict[str, Rule] = {}  # by name, without < and >
        self.slots: dict[str, Slot] = {}  # by phrase
        self._groups: dict[str, Rule] = {}  # by the text between the brackets
        self._parse(source)

    def fail(self, line: int, message: str) -> NoReturn:
        """Raise a UserError about the given line."""
        raise UserError(f"{self.name}:{line}: {message}")

    def _parse(self, source: str) -> None:
        alternatives: list[tuple[Rule, int, str]] = []
        heading: Lexicon | Rule | None = None
        for line, text in enumerate(source.splitlines(), start=1):
            content = text.strip()
            if not content or content.startswith("#"):
                continue
            if text[0] != " ":
                heading = self._parse_heading(line, content)
            elif isinstance(heading, Lexicon):
                self._parse_words(line, content, heading)
            elif heading is not None:
                alternatives.append((heading, line, content))
            else:
                self.fail(line, "expected 'words ...' or 'rule ...' without indentation before this line")
        # Alternatives are parsed last because they may use rules that are defined below them.
        for rule, line, content in alternatives:
            rule.alternatives.append((line, self._parse_items(line, content)))
        for rule in self.rules.values():
            if not rule.alternatives:
                self.fail(rule.line, f"rule {rule.name} has no alternatives; add them below it, indented")
        for variable, lexicon in self.lexicons.items():
            if len(lexicon.words) < len(lexicon.variables):
                self.fail(
                    lexicon.line,
                    f"{{{variable}}}: expected at least {len(lexicon.variables)} words, a different one for each "
                    f"variable, got {len(lexicon.words)}",
                )

    def _parse_heading(self, line: int, content: str) -> Lexicon | Rule:
        kind, _, rest = content.partition(" ")
        if kind == "rule":
            if not re.fullmatch(r"[a-z][a-z-]*", rest):
                self.fail(line, f"expected a rule name of lowercase letters and hyphens, got {rest!r}")
            if rest in self.rules:
                self.fail(line, f"rule <{rest}> is already defined on line {self.rules[rest].line}; rename one of them")
            self.rules[rest] = Rule(f"<{rest}>", line)
            return self.rules[rest]
        if kind != "words":
            self.fail(line, f"expected 'words ...' or 'rule ...', got {content!r}; indent lines that follow a heading")
        names, *attributes = [column.strip() for column in rest.split("|")]
        lexicon = Lexicon(line, tuple(name.strip() for name in names.split(",")), tuple(attributes))
        for name in (*lexicon.variables, *attributes):
            if not re.fullmatch(r"[a-z]{2,}", name):
                self.fail(line, f"expected names of two or more lowercase letters, got {name!r}")
        for variable in lexicon.variables:
            if variable in self.lexicons:
                self.fail(line, f"the variable {{{variable}}} is already defined; rename one of them")
            self.lexicons[variable] = lexicon
        return lexicon

    def _parse_words(self, line: int, content: str, lexicon: Lexicon) -> None:
        words, *texts = [column.strip() for column in content.split("|")]
        if len(texts) != len(lexicon.attributes) or "" in texts:
            self.fail(line, f"expected {' | '.join(('words', *lexicon.attributes))}, got {content!r}")
        for word in words.split(","):
            if not word.strip():
                self.fail(line, f"expected a word on both sides of every comma, got {words!r}")
            lexicon.words.append({"": word.strip()} | dict(zip(lexicon.attributes, texts)))

    def _parse_items(self, line: int, content: str) -> Items:
        items: list[Item] = []
        position = 0
        for match in _ITEM.finditer(content):
            items += self._parse_literal(line, content[position : match.start()])
            position = match.end()
            if (name := match["rule"]) is not None:
                if name not in self.rules:
                    self.fail(line, f"there is no rule <{name}>{_suggest(name, self.rules)}")
                items.append(self.rules[name])
            elif (phrase := match["phrase"]) is not None:
                items.append(self._parse_slot(line, phrase))
            elif (group := match["group"]) is not None:
                items.append(self._parse_group(line, group))
            else:
                items.append("\n\n")
        return (*items, *self._parse_literal(line, content[position:]))

    def _parse_literal(self, line: int, text: str) -> list[str]:
        if unexpected := re.search(r"[][{}<>|]", text):
            self.fail(line, f"unexpected {unexpected[0]!r} in {text!r}")
        return [text] if text else []

    def _parse_group(self, line: int, content: str) -> Rule:
        """Parse [a|b], a rule without a name.

        Equal groups become the same rule, so that two alternatives which start with equal groups can be compared.
        """
        if content not in self._groups:
            choices = [(line, self._parse_items(line, choice)) for choice in content.split("|")]
            if len(choices) < 2 or any(not items for _, items in choices):
                self.fail(line, f"expected two or more non-empty choices in [{content}]")
            self._groups[content] = Rule(f"[{content}]", line, choices)
        return self._groups[content]

    def _parse_slot(self, line: int, phrase: str) -> Slot:
        """Parse a phrase about the variable that it names or, if it names none, the first one with its attribute."""
        if phrase in self.slots:
            return self.slots[phrase]
        if not re.fullmatch(r"[A-Za-z]+\.[A-Za-z]+|[A-Za-z]+( [A-Za-z]+)*", phrase):
            self.fail(line, f"expected words, such as {{a toy}}, or {{toy.color}}, got {{{phrase}}}")
        owner, _, attribute = phrase.lower().partition(".")
        if attribute:
            names = [attribute]
            variables = [owner] if owner in self.lexicons else []
        else:
            names = owner.split(" ")
            variables = [name for name in names if name in self.lexicons] or [
                variable for variable, lexicon in self.lexicons.items() if set(names) & set(lexicon.attributes)
            ][:1]
        if not variables:
            known = [*self.lexicons, *(a for lexicon in self.lexicons.values() for a in lexicon.attributes)]
            self.fail(line, f"{{{phrase}}} names no variable or attribute{_suggest(owner.split(' ')[0], known)}")
        if len(variables) > 1:
            self.fail(line, f"{{{phrase}}} names {len(variables)} variables; use a separate slot for each")
        (variable,) = variables
        lexicon = self.lexicons[variable]
        if not set(names) & {variable, *lexicon.attributes}:
            self.fail(line, f"{{{variable}}} has no attribute {names[0]!r}{_suggest(names[0], lexicon.attributes)}")
        texts = tuple(_render(names, word, variable) for word in lexicon.words)
        if phrase != phrase.lower():
            texts = tuple(text[0].upper() + text[1:] for text in texts)
        self.slots[phrase] = Slot(phrase, variable, texts)
        return self.slots[phrase]


def _render(names: list[str], word: dict[str, str], variable: str) -> str:
    """Replace the variable and its attributes in a phrase by their texts, and "a" before a vowel by "an"."""
    parts = [word[""] if name == variable else word.get(name, name) for name in names]
    for i, following in enumerate(parts[1:]):
        if parts[i] == "a" and following[0] in "aeiou":
            parts[i] = "an"
    return " ".join(parts)


def _suggest(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
