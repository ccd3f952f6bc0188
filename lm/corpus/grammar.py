"""A grammar that generates texts and computes the exact probability of each.

A text is the left-to-right expansion of the rule `story`. Each rule picks one of its alternatives uniformly at random.
Each variable, such as {hero}, picks a word from its lexicon at its first mention in the text and keeps that word until
the end. The probability of a text is the product of the probabilities of these choices. The comment at the top of
stories.txt describes the syntax of a grammar.

Every text has exactly one derivation. `Grammar` proves this on construction by requiring that

1. where a phrase may be the first mention of a variable, its texts for the different words are prefix-free: none is
   equal to, or a prefix of, another. {he} therefore has to come after a phrase that identifies the word, such as
   {hero}, because several words share a pronoun;
2. no text of one alternative is equal to, or a prefix of, a text of another alternative of the same rule.

By induction from the leaves, the texts of every rule are then a prefix code, so when a text is read from left to right,
at most one choice fits at each step. (A concatenation of prefix codes is a prefix code: Cover and Thomas, Elements of
Information Theory, section 5.2.) `Grammar.derivations` does not rely on this proof: it tries every choice.
"""

from collections.abc import Callable, Iterator
from itertools import combinations
from math import log2
from typing import NamedTuple

from lm.corpus.grammar_parser import GrammarParser, Item, Items, Rule, Slot

START = "story"

Continuation = tuple[Item, "Continuation | None"]  # a linked list of the items that must follow


class Grammar:
    """A grammar parsed from `source`. Error messages call it `name`.

    Example:
        >>> grammar = Grammar('''
        ... words hero | he
        ...     Ann, Eve | she
        ...     Bob, Dan | he
        ... rule story
        ...     {hero} [sat|ran]. {He} smiled.
        ... ''', "example")
        >>> grammar.sample(random.Random(4).random)
        ('Eve sat. She smiled.', 3.0)
        >>> grammar.derivations("Bob ran. He smiled."), grammar.derivations("Bob ran. She smiled.")
        ([3.0], [])

    Raises:
        UserError: If the source has a mistake, or a text might have two derivations. The message gives the line.
    """

    def __init__(self, source: str, name: str) -> None:
        parser = GrammarParser(source, name)
        self._lexicons, self._slots, self._fail = parser.lexicons, parser.slots, parser.fail
        if START not in parser.rules:
            self._fail(1, f"there is no 'rule {START}'; add it, since every text starts from this rule")
        self.start = parser.rules[START]
        # (rule, variables bound before it) -> variables bound after it, or None while the rule is being checked.
        self._bound_after: dict[tuple[Rule, frozenset[str]], frozenset[str] | None] = {}
        self._check_rule(self.start, frozenset())
        used = {rule for rule, _ in self._bound_after}
        if unused := [rule for rule in parser.rules.values() if rule not in used]:
            self._fail(unused[0].line, f"rule {unused[0].name} is never used; use it or delete it")
        self._compiled = _compile(self.start, {})
        # For every word that a variable may take, the text of each phrase about that variable.
        self._forms = {
            variable: [{variable: word[""]} for word in lexicon.words] for variable, lexicon in self._lexicons.items()
        }
        for slot in self._slots.values():
            for forms, text in zip(self._forms[slot.variable], slot.texts):
                forms[slot.phrase] = text

    def sample(self, random: Callable[[], float]) -> tuple[str, float]:
        """Generate a text and return it with its -log2 p. `random` returns uniform numbers in [0, 1)."""
        template, template_bits = self.sample_template(random)
        bindings = _Bindings(self, random)
        return template % bindings, template_bits + bindings.bits

    def sample_template(self, random: Callable[[], float]) -> tuple[str, float]:
        """Generate a text with unfilled slots, written %(phrase)s, and the -log2 p of the choices of its rules."""
        pieces: list[str] = []
        bits = 0.0
        pending: list[_CompiledRule | str] = [self._compiled]
        while pending:
            item = pending.pop()
            if isinstance(item, str):
                pieces.append(item)
            else:
                num_alternatives, rule_bits, alternatives = item
                bits += rule_bits
                pending += alternatives[int(random() * num_alternatives)]
        return "".join(pieces), bits

    def derivations(self, text: str) -> list[float]:
        """Find every derivation of `text` by trying all choices, and return the -log2 p of each.

        The list is empty if the grammar cannot generate the text.
        """
        found: list[float] = []
        # The position in the text, what must follow there, the index of each variable's word, and the bits so far.
        pending: list[tuple[int, Continuation | None, dict[str, int], float]] = [(0, (self.start, None), {}, 0.0)]
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
                rule_bits = log2(len(item.alternatives))
                for _, alternative in item.alternatives:
                    pending.append((position, precede(alternative, rest), bound, bits + rule_bits))
            elif item.variable in bound:
                form = item.texts[bound[item.variable]]
                if text.startswith(form, position):
                    pending.append((position + len(form), rest, bound, bits))
            else:
                free = self.free_words(item.variable, bound)
                for word in free:
                    if text.startswith(form := item.texts[word], position):
                        following = bound | {item.variable: word}
                        pending.append((position + len(form), rest, following, bits + log2(len(free))))
        return found

    def free_words(self, variable: str, words: dict[str, int]) -> list[int]:
        """Return the indices of the words that a variable without a word may take.

        `words` holds those of the other variables; two variables of one lexicon never take the same word.
        """
        lexicon = self._lexicons[variable]
        taken = {words[other] for other in lexicon.variables if other in words}
        return [word for word in range(len(lexicon.words)) if word not in taken]

    def _check_rule(self, rule: Rule, bound: frozenset[str]) -> frozenset[str]:
        """Check a rule, assuming that the variables in `bound` have their words before it.

        Returns the variables that have their words after it, whichever alternative is picked.
        """
        if (rule, bound) in self._bound_after:
            known = self._bound_after[rule, bound]
            if known is None:
                self._fail(rule.line, f"rule {rule.name} refers to itself, so a text might never end")
            return known
        self._bound_after[rule, bound] = None
        bound_after = frozenset.intersection(
            *(self._check_items(line, items, bound) for line, items in rule.alternatives)
        )
        for (first_line, first), (line, second) in combinations(rule.alternatives, 2):
            if not _are_prefix_free(first, second, bound):
                self._fail(
                    line,
                    f"rule {rule.name}: a text of this line may be equal to, or a prefix of, a text of line "
                    f"{first_line}, or the reverse; start the two with different words",
                )
        self._bound_after[rule, bound] = bound_after
        return bound_after

    def _check_items(self, line: int, items: Items, bound: frozenset[str]) -> frozenset[str]:
        for item in items:
            if isinstance(item, Rule):
                bound = self._check_rule(item, bound)
            elif isinstance(item, Slot) and item.variable not in bound:
                if item.prefix_clash:
                    first, second = item.prefix_clash
                    self._fail(
                        line,
                        f"{{{item.phrase}}} may be the first mention of {{{item.variable}}} here, but does not "
                        f"identify its word: {first!r} is equal to or a prefix of {second!r}",
                    )
                bound |= {item.variable}
        return bound


def precede(items: Items, rest: Continuation | None) -> Continuation | None:
    """Return the linked list of `items`, followed by `rest`."""
    for item in reversed(items):
        rest = item, rest
    return rest


class _Bindings(dict[str, str]):
    """Phrase -> text, to fill a template from left to right; a variable draws its word at the first lookup."""

    def __init__(self, grammar: Grammar, random: Callable[[], float]) -> None:
        self.bits = 0.0
        self._grammar = grammar
        self._random = random

    def __missing__(self, phrase: str) -> str:
        variable = self._grammar._slots[phrase].variable
        forms = self._grammar._forms[variable]
        taken = [self[other] for other in self._grammar._lexicons[variable].variables if other in self]
        drawn = forms[int(self._random() * len(forms))]
        while drawn[variable] in taken:
            drawn = forms[int(self._random() * len(forms))]
        self.bits += log2(len(forms) - len(taken))
        self.update(drawn)
        return self[phrase]


class _CompiledRule(NamedTuple):
    """A rule in the form that `Grammar.sample_template` reads fastest."""

    num_alternatives: int
    bits: float  # log2 of num_alternatives
    alternatives: list[list["str | _CompiledRule"]]  # each reversed, to be pushed on a stack


def _compile(rule: Rule, compiled: dict[Rule, _CompiledRule]) -> _CompiledRule:
    """Compile a rule, joining neighboring literals and slots into one template string."""
    if rule not in compiled:
        alternatives = []
        for _, items in rule.alternatives:
            parts: list[str | _CompiledRule] = []
            for item in items:
                if isinstance(item, Rule):
                    parts.append(_compile(item, compiled))
                    continue
                template = item.replace("%", "%%") if isinstance(item, str) else f"%({item.phrase})s"
                if parts and isinstance(parts[-1], str):
                    parts[-1] += template
                else:
                    parts.append(template)
            alternatives.append(parts[::-1])
        compiled[rule] = _CompiledRule(len(alternatives), log2(len(alternatives)), alternatives)
    return compiled[rule]


def _are_prefix_free(first: Items, second: Items, bound: frozenset[str]) -> bool:
    """Whether no text of `first` can be equal to, or a prefix of, a text of `second`, or the reverse.

    The variables in `bound` already have their words. The answer may be False for items that are prefix-free, because
    all texts of a slot are compared, whatever the words in other slots.
    """
    while first and second and first[0] == second[0]:
        first, second = first[1:], second[1:]
    if not first or not second:
        return False
    a, b = first[0], second[0]
    if isinstance(a, str):
        if not isinstance(b, str):
            return all(_are_prefix_free(first, (*expansion, *second[1:]), bound) for expansion in _expansions(b))
        if a.startswith(b):
            return _are_prefix_free((a[len(b) :], *first[1:]), second[1:], bound)
        if b.startswith(a):
            return _are_prefix_free(first[1:], (b[len(a) :], *second[1:]), bound)
        return True
    if (
        isinstance(a, Slot)
        and isinstance(b, Slot)
        and a.texts == b.texts
        and {a.variable, b.variable} <= bound
        and a.variable != b.variable
        and not a.prefix_clash
    ):
        return True  # two variables of one lexicon never take the same word
    return all(_are_prefix_free((*expansion, *first[1:]), second, bound) for expansion in _expansions(a))


def _expansions(item: Slot | Rule) -> Iterator[Items]:
    if isinstance(item, Rule):
        return (items for _, items in item.alternatives)
    return ((text,) for text in set(item.texts))
