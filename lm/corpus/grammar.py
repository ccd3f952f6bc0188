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

from collections.abc import Callable, Iterator
from itertools import combinations
from math import log2

from lm.corpus.grammar_parser import Items, Notation, Rule, Slot

START = "story"


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
        ('Eve sat. She smiled.', 3.0)
        >>> grammar.derivations("Bob ran. He smiled."), grammar.derivations("Bob ran. She smiled.")
        ([3.0], [])

    Raises:
        UserError: the source has a mistake, or a text might have two derivations; the message names the line.
    """

    def __init__(self, source: str, name: str) -> None:
        notation = Notation(source, name)
        self._lexicons, self._slots, self._fail = notation.lexicons, notation.slots, notation.fail
        if START not in notation.rules:
            self._fail(1, f"there is no 'rule {START}', with which a text begins")
        self._start = notation.rules[START]
        self._sure: dict[tuple[Rule, frozenset[str]], frozenset[str] | None] = {}
        self._check(self._start, frozenset())
        used = {rule for rule, _ in self._sure}
        if unused := [rule for rule in notation.rules.values() if rule not in used]:
            self._fail(unused[0].line, f"rule {unused[0].name} is never used")
        self._choices = _compile(self._start, {})
        # For every word that a variable may take, the texts of all phrases about that variable.
        self._forms = {
            variable: [{variable: word[""]} for word in lexicon.words] for variable, lexicon in self._lexicons.items()
        }
        for slot in self._slots.values():
            for forms, text in zip(self._forms[slot.variable], slot.texts):
                forms[slot.phrase] = text

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
        found: list[float] = []
        # Where the text is read to, what must follow (a linked list), the index of each variable's word, the bits.
        pending: list[tuple[int, tuple | None, dict[str, int], float]] = [(0, (self._start, None), {}, 0.0)]
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

    def _check(self, rule: Rule, bound: frozenset[str]) -> frozenset[str]:
        """The variables that surely have a word after `rule`, from those that surely have one before it."""
        if (rule, bound) in self._sure:
            known = self._sure[rule, bound]
            if known is None:
                self._fail(rule.line, f"rule {rule.name} calls itself, so a text might never end")
            return known
        self._sure[rule, bound] = None
        after = [self._check_items(number, items, bound) for number, items in rule.alternatives]
        for (first_line, first), (line, second) in combinations(rule.alternatives, 2):
            if not _apart(first, second, bound):
                self._fail(line, f"rule {rule.name}: a text of this line may begin, or equal, one of line {first_line}")
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


class _Bindings(dict[str, str]):
    """The texts of phrases; a variable draws its word when the text, filled from the left, first mentions it."""

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
