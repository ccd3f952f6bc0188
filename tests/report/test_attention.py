import dataclasses

import numpy as np
import pytest
import torch

from lm.corpus.stories import stories
from lm.evaluation.looking_back import LookingBack, Repetition
from lm.model.files import save_model
from lm.model.transformer import TransformerLM
from lm.report.attention import ATTENTION, choose, most
from lm.report.blocks import Missing, Table, Tokens
from lm.report.page import fill
from lm.report.run import Run
from lm.tokenizer.tokenizer import Tokenizer
from tests.report.conftest import write_tokens


@pytest.fixture
def run(encoded_run, small):
    """A run on another corpus, with an untrained model whose queries are zero: its attention is spread evenly."""
    params = (encoded_run.folder / "params.yaml").read_text()
    (encoded_run.folder / "params.yaml").write_text(params.replace("source: stories", "source: tinystories"))
    tokenizer = encoded_run.tokenizer
    torch.manual_seed(0)
    model = TransformerLM(dataclasses.replace(small, context_length=900), tokenizer.vocab_size)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name:
                parameter.zero_()
    save_model(encoded_run.folder / "data" / "model", model, tokenizer.hash)
    return Run(encoded_run.folder)


def section(run):
    return fill(run, "test", [ATTENTION]).sections[0]


def found_in(documents, repetitions, share=((0.1, 0.5), (0.5, 0.2))):
    return LookingBack(np.array(share), 0.05, [np.array(ids) for ids in documents], repetitions)


def test_other_text_has_pairs_of_tokens(run):
    shown = section(run)
    even = f"{run.looking_back.even_share:.0%}"
    assert shown.finding == (
        f"Head 1 of layer 1 looks back most: {even} of its attention is on tokens that completed the same pair of "
        f"tokens before, compared with {even} if it were spread evenly."
    )
    table, *examples = shown.blocks
    assert isinstance(table, Table)
    assert [list(row) for row in table.rows] == [["1", *[even] * 4], ["2", *[even] * 4]]
    ids = run.val_documents[0]
    last = run.looking_back.repetitions[0][-1]
    example = examples[-1]
    assert isinstance(example, Tokens)
    text = "".join(span.text for span in example.spans)
    assert text == run.tokenizer.decode(ids[: last.stop].tolist())
    assert [span.text for span in example.spans if span.mark] == [run.tokenizer.decode(ids[last.start : last.stop])]
    # Spread evenly over the tokens before and the end-of-text token, which is not shown.
    assert example.spans[0].weight == pytest.approx(round(1 / (last.start + 1), 2))


def test_stories_have_names(run):
    params = (run.folder / "params.yaml").read_text()
    (run.folder / "params.yaml").write_text(params.replace("source: tinystories", "source: stories"))
    story = next(iter(stories(5))).text
    write_tokens(run.folder / "data" / "tokens", run.tokenizer, [story])
    shown = section(Run(run.folder))
    assert "of its attention is on earlier mentions of the name that comes next" in shown.finding
    names = {span.text.strip() for block in shown.blocks[1:] for span in block.spans if span.mark}
    assert len(names) == len(shown.blocks[1:]) > 0
    assert all(name.istitle() and story.count(name) > 1 for name in names)


def test_of_equal_heads_the_first_is_chosen():
    repetitions = [[Repetition(2, 3, [1])]]
    assert most(found_in([[1, 1, 1]], repetitions)) == (0, 1)
    assert most(found_in([[1, 1, 1]], repetitions, [[0.1, 0.5001], [0.5004, 0.2]])) == (0, 1)
    assert most(found_in([[1, 1, 1]], repetitions, [[0.1, 0.501], [0.502, 0.2]])) == (1, 0)


@pytest.fixture
def letters():
    """A tokenizer whose ids are those of bytes."""
    return Tokenizer({byte: bytes([byte]) for byte in range(256)}, [])


def test_three_words_are_chosen_from_the_beginning_to_the_end(letters):
    repetitions = [Repetition(position, position + 1, [position - 10]) for position in range(10, 20)]
    chosen = choose(found_in([[*b"abcdefghijabcdefghij"]], [repetitions]), letters)[1]
    assert chosen == [repetitions[0], repetitions[4], repetitions[9]]


def test_the_examples_are_the_last_of_different_words(letters):
    nothing, once, spaces, twice = [*b"abc"], [*b"abab"], [*b"ab ab  ab "], [*b"abcabcab"]
    one = Repetition(3, 4, [1])
    with_spaces = [Repetition(4, 5, [1]), Repetition(5, 6, [2]), Repetition(9, 10, [2, 5])]
    pairs = [Repetition(4, 5, [1]), Repetition(5, 6, [2]), Repetition(7, 8, [1, 4])]
    everything = found_in([nothing, once, spaces, twice, twice], [[], [one], with_spaces, pairs, pairs])
    ids, examples = choose(everything, letters)
    assert ids.tolist() == twice and examples == [pairs[1], pairs[2]]
    ids, examples = choose(found_in([nothing, once], [[], [one]]), letters)
    assert ids.tolist() == once and examples == [one]


def test_of_long_text_only_the_end_is_shown(run, monkeypatch):
    monkeypatch.setattr("lm.report.attention._MAX_TOKENS", 3)
    example = section(run).blocks[-1]
    last = run.looking_back.repetitions[0][-1]
    ids = run.val_documents[0][last.start - 3 : last.stop]
    assert "".join(span.text for span in example.spans) == "... " + run.tokenizer.decode(ids.tolist())


def test_text_that_repeats_nothing(run):
    write_tokens(run.folder / "data" / "tokens", run.tokenizer, ["abc"])
    shown = section(Run(run.folder))
    assert shown.finding == "" and [type(block) for block in shown.blocks] == [Missing]
    assert "repeat nothing" in shown.blocks[0].message


def test_a_diverged_model(run):
    model = run.model
    with torch.no_grad():
        model.token_embeddings.weight.fill_(torch.nan)
    shown = section(run)
    assert shown.finding == "" and [block.message for block in shown.blocks] == ["The model's attention is not finite."]


def test_without_a_model_the_command_that_makes_it_is_named(encoded_run):
    (missing,) = section(encoded_run).blocks
    assert isinstance(missing, Missing) and "dvc repro train" in missing.message
