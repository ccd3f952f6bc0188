"""A grammar that writes texts and knows the exact probability of each.

A text is the left-to-right expansion of the rule `story`: every rule chooses one of its alternatives, all equally
likely, and every variable, such as {hero}, takes a word of its lexicon where the text first mentions it and keeps
that word to the end. So p(text) is the product of the choices, in the order of the text. stories.txt describes the
notation at its head.

No text has two derivations, and `Grammar` proves it while it loads. It demands that

1. the forms of a phrase that may introduce a variable are prefix-free: no word's form begins, or equals, that of
   another word. So {he} must follow a phrase that tells who it is, such as {hero};
2. no text of one alternative begins a text of another alternative of the same rule.

By induction from the leaves the texts of every rule are then a prefix code: reading from the left, at most one choice
fits at each step. (A concatenation of prefix codes is a prefix code: Cover and Thomas, Elements of Information
Theory, section 5.2.) `Grammar.derivations` assumes none of this; it tries every choice.
"""

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from math import log2
from typing import NoReturn

from lm.errors import UserError

START = "story"
_ITEM = re.compile(r"<(?P<rule>[^<>]*)>|{(?P<phrase>[^{}]*)}|\[(?P<group>[^\[\]]*)\]|(?P<paragraph> *// *)")


@dataclass(frozen=True, eq=False)
class Lexicon:
    """The words that some variables may take, each a mapping of "" to itself and of attributes to their texts."""

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
    """Alternatives with the numbers of their lines; an alternative is a sequence of literals, slots and rules."""

    name: str
    line: int
    alternatives: list[tuple[int, "Items"]] = field(default_factory=list)


Items = tuple[str | Slot | Rule, ...]


class Grammar:
    """A grammar read from `source`; `name` stands for it in messages.

    Example:
        >>> grammar = Grammar('''
        ... words hero | he
        ...     Ann, Eve | she
        ...     Bob, Dan | he
        ... rule story
        ...     {hero} [sat|ran]. {He} smiled.
        ... ''', "example")
        >>> grammar.write(random.Random(4).random)
        ('Ann sat. She smiled.', 3.0)
        >>> grammar.derivations("Bob ran. He smiled."), grammar.derivations("Bob ran. She smiled.")
        ([3.0], [])

    Raises:
        UserError: the source has a mistake, or a text might have two derivations; the message names the line.
    """

    def __init__(self, source: str, name: str) -> None:
        self._name = name
        self._lexicons: dict[str, Lexicon] = {}  # by variable
        self._rules: dict[str, Rule] = {}
        self._slots: dict[str, Slot] = {}
        self._groups: dict[str, Rule] = {}
        self._read(source)
        self._sure: dict[tuple[Rule, frozenset[str]], frozenset[str] | None] = {}
        self._check(self._rules[START], frozenset())
        if unused := [rule for rule in self._rules.values() if rule not in {rule for rule, _ in self._sure}]:
            self._fail(unused[0].line, f"rule <{unused[0].name}> is never used")
        self._choices = _compile(self._rules[START], {})
        # For every word that a variable may take, the texts of all phrases about that variable.
        self._forms = {
            variable: [
                {variable: word[""]} | {slot.phrase: slot.texts[i] for slot in self._slots.values() if slot.variable == variable}
                for i, word in enumerate(lexicon.words)
            ]
            for variable, lexicon in self._lexicons.items()
        }

    def write(self, random: Callable[[], float]) -> tuple[str, float]:
        """A text and its -log2 p, from a source of uniform numbers in [0, 1)."""
        skeleton, skeleton_bits = self.skeleton(random)
        bindings = _Bindings(self, random)
        return skeleton % bindings, skeleton_bits + bindings.bits

    def skeleton(self, random: Callable[[], float]) -> tuple[str, float]:
        """A text whose slots are still open, as %(phrase)s, and the -log2 p of the choices of its rules."""
        pieces: list[str] = []
        bits = 0.0
        pending: list[_Choices | str] = [self._choices]
        while pending:
            item = pending.pop()
            if type(item) is str:
                pieces.append(item)
            else:
                count, cost, alternatives = item
                bits += cost
                pending += alternatives[int(random() * count)]
        return "".join(pieces), bits

    def derivations(self, text: str) -> list[float]:
        """The -log2 p of every derivation of `text`, found by trying all choices; [] if the grammar cannot write it."""
        found = []
        pending = [(0, (self._rules[START], None), {}, 0.0)]
        while pending:
            position, items, bound, bits = pending.pop()
            if items is None:
                if position == len(text):
                    found.append(bits)
                continue
            item, rest = items
            if isinstance(item, str):
                if text.startswith(item, position):
                    pending.append((position + len(item), rest, bound, bits))
            elif isinstance(item, Rule):
                cost = log2(len(item.alternatives))
                for _, alternative in item.alternatives:
                    following = rest
                    for part in reversed(alternative):
                        following = (part, following)
                    pending.append((position, following, bound, bits + cost))
            elif item.variable in bound:
                form = item.texts[bound[item.variable]]
                if text.startswith(form, position):
                    pending.append((position + len(form), rest, bound, bits))
            else:
                taken = {bound[rival] for rival in self._lexicons[item.variable].variables if rival in bound}
                cost = log2(len(item.texts) - len(taken))
                for word, form in enumerate(item.texts):
                    if word not in taken and text.startswith(form, position):
                        pending.append((position + len(form), rest, bound | {item.variable: word}, bits + cost))
        return found

    # Reading.

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
                self._fail(number, "expected a heading, 'words ...' or 'rule ...', at the margin")
        # Rules may call rules that stand below them.
        for rule, number, content in bodies:
            rule.alternatives.append((number, self._items(number, content)))
        for rule in self._rules.values():
            if not rule.alternatives:
                self._fail(rule.line, f"rule <{rule.name}> has no alternatives; indent them below it")
        for variable, lexicon in self._lexicons.items():
            if len(lexicon.words) < len(lexicon.variables):
                self._fail(1, f"{{{variable}}}: fewer words than variables, which never share one")
        if START not in self._rules:
            self._fail(1, f"there is no 'rule {START}', with which a text begins")

    def _read_heading(self, number: int, content: str) -> Lexicon | Rule:
        kind, _, rest = content.partition(" ")
        if kind == "rule":
            if not re.fullmatch(r"[a-z][a-z-]*", rest):
                self._fail(number, f"expected a rule's name of small letters and hyphens, got {rest!r}")
            if rest in self._rules:
                self._fail(number, f"rule <{rest}> stands already at line {self._rules[rest].line}")
            self._rules[rest] = Rule(rest, number)
            return self._rules[rest]
        if kind != "words":
            self._fail(number, f"expected 'words ...' or 'rule ...', got {content!r}; indent what belongs to a heading")
        names, *attributes = [column.strip() for column in rest.split("|")]
        lexicon = Lexicon(tuple(name.strip() for name in names.split(",")), tuple(attributes))
        for name in (*lexicon.variables, *attributes):
            if not re.fullmatch(r"[a-z]{2,}", name):
                self._fail(number, f"expected names of two or more small letters, got {name!r}")
        for variable in lexicon.variables:
            if variable in self._lexicons:
                self._fail(number, f"the variable {{{variable}}} is declared twice")
            self._lexicons[variable] = lexicon
        return lexicon

    def _read_words(self, number: int, content: str, lexicon: Lexicon) -> None:
        values, *texts = [column.strip() for column in content.split("|")]
        if len(texts) != len(lexicon.attributes) or "" in texts:
            self._fail(number, f"expected words and {len(lexicon.attributes)} attributes, parted by |, got {content!r}")
        for value in values.split(","):
            if not value.strip():
                self._fail(number, "an empty word between two commas")
            lexicon.words.append({"": value.strip()} | dict(zip(lexicon.attributes, texts)))

    def _items(self, number: int, content: str) -> Items:
        items: list[str | Slot | Rule] = []
        position = 0
        for match in _ITEM.finditer(content):
            items += self._literal(number, content[position : match.start()])
            position = match.end()
            if (name := match["rule"]) is not None:
                if name not in self._rules:
                    self._fail(number, f"there is no rule <{name}>{_suggest(name, self._rules)}")
                items.append(self._rules[name])
            elif (phrase := match["phrase"]) is not None:
                items.append(self._slot(number, phrase))
            elif (group := match["group"]) is not None:
                items.append(self._group(number, group))
            else:
                items.append("\n\n")
        return (*items, *self._literal(number, content[position:]))

    def _literal(self, number: int, text: str) -> list[str]:
        if stray := re.search(r"[][{}<>|]", text):
            self._fail(number, f"stray {stray[0]!r} in {text!r}")
        return [text] if text else []

    def _group(self, number: int, content: str) -> Rule:
        """[a|b], a rule without a name; equal groups are one rule, so that alternatives which share one compare."""
        if content not in self._groups:
            parts = [(number, self._items(number, part)) for part in content.split("|")]
            if len(parts) < 2 or any(not items for _, items in parts):
                self._fail(number, f"expected two or more non-empty choices in [{content}]")
            self._groups[content] = Rule(f"[{content}]", number, parts)
        return self._groups[content]

    def _slot(self, number: int, phrase: str) -> Slot:
        """The slot of a phrase: its variable is the one it names, or the first one that has the attribute it names."""
        if phrase in self._slots:
            return self._slots[phrase]
        names = phrase.lower().split(" ")
        owner, _, attribute = names[0].partition(".")
        if attribute:
            variables, names = [owner] if owner in self._lexicons else [], [attribute]
        else:
            variables = [name for name in names if name in self._lexicons]
        if not variables:
            variables = [v for v, lexicon in self._lexicons.items() if set(names) & set(lexicon.attributes)][:1]
        if len(variables) != 1:
            known = {*self._lexicons, *(a for lexicon in self._lexicons.values() for a in lexicon.attributes)}
            wanted = "names two variables" if variables else f"names no variable or attribute{_suggest(names[0], known)}"
            self._fail(number, f"{{{phrase}}} {wanted}")
        (variable,) = variables
        lexicon = self._lexicons[variable]
        if not set(names) & {variable, *lexicon.attributes}:
            self._fail(number, f"{{{variable}}} has no attribute {names[0]!r}{_suggest(names[0], lexicon.attributes)}")
        texts = tuple(_render(names, word, variable) for word in lexicon.words)
        if phrase != phrase.lower():
            texts = tuple(text[0].upper() + text[1:] for text in texts)
        self._slots[phrase] = Slot(phrase, variable, texts)
        return self._slots[phrase]

    # Proving that derivations are unique.

    def _check(self, rule: Rule, bound: frozenset[str]) -> frozenset[str]:
        """The variables that surely have a word after `rule`, from those that surely have one before it."""
        if (rule, bound) in self._sure:
            known = self._sure[rule, bound]
            if known is None:
                self._fail(rule.line, f"rule <{rule.name}> calls itself, so a text might never end")
            return known
        self._sure[rule, bound] = None
        after = [self._check_items(number, items, bound) for number, items in rule.alternatives]
        for (first_line, first), (line, second) in combinations(rule.alternatives, 2):
            if not _apart(first, second, bound):
                self._fail(line, f"rule <{rule.name}>: a text of this alternative may begin one of line {first_line}, or equal it")
        self._sure[rule, bound] = frozenset.intersection(*after)
        return self._sure[rule, bound]

    def _check_items(self, number: int, items: Items, bound: frozenset[str]) -> frozenset[str]:
        for item in items:
            if isinstance(item, Rule):
                bound = self._check(item, bound)
            elif isinstance(item, Slot) and item.variable not in bound:
                if item.clash:
                    self._fail(
                        number,
                        f"{{{item.phrase}}} may introduce {{{item.variable}}} here, but does not tell its words apart: "
                        f"{item.clash[0]!r} begins {item.clash[1]!r}",
                    )
                bound |= {item.variable}
        return bound

    def _fail(self, number: int, message: str) -> NoReturn:
        raise UserError(f"{self._name}:{number}: {message}")


class _Bindings(dict[str, str]):
    """The texts of phrases; a variable draws its word when the filling of a skeleton first asks for one of its phrases."""

    def __init__(self, grammar: Grammar, random: Callable[[], float]) -> None:
        self.bits = 0.0
        self._grammar = grammar
        self._random = random

    def __missing__(self, phrase: str) -> str:
        variable = self._grammar._slots[phrase].variable
        forms = self._grammar._forms[variable]
        taken = [self[rival] for rival in self._grammar._lexicons[variable].variables if rival in self]
        drawn = forms[int(self._random() * len(forms))]
        while drawn[variable] in taken:
            drawn = forms[int(self._random() * len(forms))]
        self.bits += log2(len(forms) - len(taken))
        self.update(drawn)
        return self[phrase]


_Choices = tuple[int, float, list[list["str | _Choices"]]]  # how many alternatives, log2 of that, each reversed


def _compile(rule: Rule, done: dict[Rule, _Choices]) -> _Choices:
    """The rule as plain tuples, with neighbouring literals and slots joined to one template."""
    if rule not in done:
        alternatives = []
        for _, items in rule.alternatives:
            parts: list[str | _Choices] = []
            for item in items:
                if isinstance(item, Rule):
                    parts.append(_compile(item, done))
                    continue
                template = item.replace("%", "%%") if isinstance(item, str) else f"%({item.phrase})s"
                if parts and isinstance(parts[-1], str):
                    template = parts.pop() + template
                parts.append(template)
            alternatives.append(parts[::-1])
        done[rule] = (len(alternatives), log2(len(alternatives)), alternatives)
    return done[rule]


def _apart(first: Items, second: Items, bound: frozenset[str]) -> bool:
    """Whether surely no text of one begins a text of the other, when the variables in `bound` have their words.

    Errs on the side of no: it compares all forms of a slot, whatever the words of other slots.
    """
    while first and second and first[0] == second[0]:
        first, second = first[1:], second[1:]
    if not first or not second:
        return False
    a, b = first[0], second[0]
    if isinstance(a, str) and isinstance(b, str):
        if a.startswith(b):
            return _apart((a[len(b) :], *first[1:]), second[1:], bound)
        if b.startswith(a):
            return _apart(first[1:], (b[len(a) :], *second[1:]), bound)
        return True
    if isinstance(a, Slot) and isinstance(b, Slot) and a.texts == b.texts and {a.variable, b.variable} <= bound:
        if a.variable != b.variable and not a.clash:
            return True  # two variables of one lexicon never take the same word
    if isinstance(a, str):
        return all(_apart(first, (*expansion, *second[1:]), bound) for expansion in _expansions(b))
    return all(_apart((*expansion, *first[1:]), second, bound) for expansion in _expansions(a))


def _expansions(item: Slot | Rule) -> Iterator[Items]:
    if isinstance(item, Rule):
        return (items for _, items in item.alternatives)
    return ((text,) for text in set(item.texts))


def _render(names: list[str], word: dict[str, str], variable: str) -> str:
    """The words of a phrase with the variable and its attributes filled in, and "a" made "an" before a vowel."""
    parts = [word[""] if name == variable else word.get(name, name) for name in names]
    for i, following in enumerate(parts[1:]):
        if parts[i] == "a" and following[0] in "aeiou":
            parts[i] = "an"
    return " ".join(parts)


def _suggest(name: str, known: "set[str] | dict[str, object] | tuple[str, ...]") -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
