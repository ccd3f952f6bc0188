import json

import pytest

from lm.corpus.grammar_reader import read
from lm.corpus.stories import stories, story_grammar
from lm.evaluation.kinds import kind
from lm.report.blocks import Facts, Missing, Plot, Table, Text, Tokens
from lm.report.evaluation import EVALUATION, first_word
from lm.report.page import fill
from lm.report.run import Run

METRICS = {
    "diverged": 0,
    "documents": 1100,
    "tokens": 20000,
    "nats_per_token": 0.5,
    "bits_per_byte": 0.25,
    "top_choice_accuracy": 0.75,
    "calibration_error": 0.0625,
    "nats_from_token_0": 1.0,
    "nats_from_token_16": 0.5,
}
KINDS = {
    "floor_bits_per_byte": 0.125,
    "excess_bits_per_byte": 0.125,
    "forward_divergence_bits": 30.0,
    "wording_nats": 0.25,
    "wording_excess_bits_per_byte": 0.025,
    "later_name_nats": 2.0,
    "later_name_excess_bits_per_byte": 0.1,
}
PAIRS = {
    f"minimal_pair_accuracy{kind}{end}": value
    for kind in ("", "_later_name")
    for end, value in (("", 0.75), ("_low", 0.5), ("_high", 1.0))
}
SAMPLE = {"prompt": "Once", "seed": 1, "text": "Once <b>upon</b>", "ended": True}


@pytest.fixture
def run(planned_run):
    """A run on another corpus, with what the stages evaluate and sample wrote."""
    folder = planned_run.folder
    params = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(params.replace("source: stories", "source: tinystories"))
    (folder / "metrics").mkdir()
    (folder / "data" / "samples").mkdir(parents=True)
    (folder / "metrics" / "evaluation.json").write_text(json.dumps(METRICS))
    (folder / "metrics" / "calibration.csv").write_text("probability,accuracy,weight\n0.25,0.5,1\n")
    write_samples(planned_run, SAMPLE)
    return planned_run


@pytest.fixture
def story_run(run):
    """A run on the built-in stories."""
    params = (run.folder / "params.yaml").read_text()
    (run.folder / "params.yaml").write_text(params.replace("source: tinystories", "source: stories"))
    (run.folder / "metrics" / "evaluation.json").write_text(json.dumps(METRICS | KINDS | PAIRS))
    return run


def write_samples(run, *samples):
    (run.folder / "data" / "samples" / "samples.json").write_text(json.dumps(samples))


def section(run):
    return fill(Run(run.folder), "test", [EVALUATION]).sections[0]


def test_other_text_has_its_loss_and_its_samples(run):
    shown = section(run)
    assert shown.finding == "On whole documents, the loss is 0.2500 bits per byte, or 0.5000 nats per token."
    facts, positions, calibration, sample = shown.blocks
    assert isinstance(facts, Facts) and ("documents", "1,100") in facts.rows
    assert isinstance(positions, Plot)
    assert positions.alt == "Nats per token by position in the document: from token 0 on 1.00, from token 16 on 0.50"
    assert isinstance(calibration, Plot) and calibration.alt.endswith("the mean difference is 0.0625")
    assert isinstance(sample, Text) and sample.text == "Once <b>upon</b>"
    assert sample.title == "Prompt “Once”, seed 1"


def test_of_stories_the_kind_that_costs_most_is_found(story_run):
    shown = section(story_run)
    assert shown.finding == (
        "Later mentions of names account for 0.1000 of the 0.1250 bits per byte by which the loss is above the entropy "
        "of the text."
    )
    plots = {block.name: block.alt for block in shown.blocks if isinstance(block, Plot)}
    assert list(plots) == ["excess", "minimal-pairs", "positions", "calibration"]
    assert plots["excess"].endswith("wording 0.0250, later mentions of names 0.1000")
    assert plots["minimal-pairs"].endswith("all 75%, later mentions of names 75%")
    assert isinstance(shown.blocks[-1], Tokens)


def test_wording_is_singular(story_run):
    metrics = METRICS | KINDS | {"wording_excess_bits_per_byte": 0.12}
    (story_run.folder / "metrics" / "evaluation.json").write_text(json.dumps(metrics))
    assert section(story_run).finding.startswith("Wording accounts for 0.1200 of the 0.1250 bits per byte")


def test_the_generated_texts_are_a_table(story_run):
    samples = {f"samples_mistakes_{kind}": 0.0 for kind in ("wording", "first_name", "first_other", "later_name")}
    samples |= {f"samples_mistakes_{kind}": 0.25 for kind in ("later_other", "attribute", "ending")}
    samples |= {f"samples_{name}": 0.5 for name in ("correct_share", "in_train", "distinct")}
    samples |= {f"samples_derivable{end}": 0.25 for end in ("", "_low", "_high")}
    samples |= {f"configured_{name}": value for name, value in samples.items()}
    (story_run.folder / "metrics" / "evaluation.json").write_text(json.dumps(METRICS | KINDS | samples))
    (table,) = (block for block in section(story_run).blocks if isinstance(block, Table))
    assert len(table.rows) == 11 and {len(row) for row in table.rows} == {len(table.header)}
    assert ("first mistake: the end of the story", "25.0%", "25.0%") in table.rows


def judged(run, text, ended=True):
    write_samples(run, {**SAMPLE, "text": text, "ended": ended})
    block = section(run).blocks[-1]
    assert "".join(span.text for span in block.spans).removesuffix(" ...") == text
    return block.note, [span.text for span in block.spans if span.mark]


def test_the_first_mistake_is_marked(story_run):
    story = next(iter(stories(5))).text
    position = story.index(".")
    wrong = story[: position + 2] + "Xylophones, <i>all" + story[position + 1 :]
    note, marked = judged(story_run, wrong)
    assert marked == ["Xylophones"]
    assert note.startswith(f"The first mistake comes after {(position + 2) / len(wrong):.0%} of the text, ")


def test_a_name_that_is_not_in_the_story_is_a_mistake(story_run):
    story = next(iter(stories(5))).text
    parts = read(story_grammar(), story).parts
    part = next(part for part in parts if kind(part) == "later_name")
    wrong = f"{story[: part.start]}Zzz{story[part.stop :]}"
    note, marked = judged(story_run, wrong)
    assert marked == ["Zzz"] and "where the grammar expected" in note


def test_a_story_without_a_mistake(story_run):
    story = next(iter(stories(5))).text
    assert judged(story_run, story) == ("The grammar derives this story: there is no mistake.", [])
    assert judged(story_run, story[:200]) == ("The only mistake is that the text ends before the story does.", [])
    assert judged(story_run, story[:200], ended=False) == ("The text was cut off. Up to there, it has no mistake.", [])
    note, marked = judged(story_run, f"{story} More.")
    assert note.endswith("of the text, where the grammar expected the end of the story.") and marked == [" More"]


@pytest.mark.parametrize(
    ("position", "expected"),
    [(0, "the"), (2, "the"), (3, " big"), (5, "big"), (7, ","), (8, "  cat"), (9, " cat"), (10, "cat"), (13, "\n")],
)
def test_the_word_at_a_position(position, expected):
    text = "the big,  cat\n"
    start, stop = first_word(text, position)
    assert text[start:stop] == expected


def test_a_diverged_model_has_only_samples(run):
    (run.folder / "metrics" / "evaluation.json").write_text(json.dumps({"documents": 1, "tokens": 2, "diverged": 1}))
    shown = section(run)
    assert shown.finding == "The model's loss is not finite, so there is nothing to measure."
    assert [type(block) for block in shown.blocks] == [Text]


def test_what_is_missing_is_said(run):
    (run.folder / "metrics" / "calibration.csv").unlink()
    messages = [block.message for block in section(run).blocks if isinstance(block, Missing)]
    assert len(messages) == 1 and "calibration.csv: there is no such file; make it with: dvc repro" in messages[0]
    (run.folder / "metrics" / "evaluation.json").unlink()
    shown = section(run)
    assert shown.finding == "" and [type(block) for block in shown.blocks] == [Missing, Text]


def test_only_a_few_samples_are_shown(run):
    write_samples(run, *[SAMPLE] * 9)
    assert sum(isinstance(block, Text) for block in section(run).blocks) == 4
