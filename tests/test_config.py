import dataclasses
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from lm import config
from lm.config import Params
from lm.errors import UserError
from lm.model.config import AttentionBackend, FeedForward, Norm


def one_of(kind: Any) -> str:
    """The values of a Literal as messages list them."""
    return " | ".join(map(repr, get_args(kind)))


def edited(params_text: str, key: str, value: str) -> str:
    """params.yaml with `section.key` set to the YAML text `value`."""
    section, name = key.split(".")
    lines, inside, replaced = [], False, False
    for line in params_text.splitlines():
        if not line.startswith(" "):
            inside = line.startswith(f"{section}:")
        if replaced and line.startswith(("  - ", "   ")):
            continue  # an item of the list, or a key of the section, that was there
        replaced = inside and line.startswith(f"  {name}:")
        lines.append(f"  {name}: {value}" if replaced else line)
    return "\n".join(lines)


@pytest.fixture
def text(project: Path) -> str:
    return (project / "params.yaml").read_text(encoding="utf-8")


def load(text: str, folder: Path) -> Params:
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return config.load(path)


def test_yaml_1_2_numbers_and_switches_as_dvc_writes_them(text, tmp_path):
    # `dvc exp run -S optim.max_learning_rate=3e-5` writes 3e-05, which YAML 1.1 reads as text.
    written = edited(edited(text, "optim.max_learning_rate", "3e-05"), "optim.min_learning_rate", "0.0")
    assert load(written, tmp_path).optim.max_learning_rate == 3e-5


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.norm", "false", f"model.norm: expected {one_of(Norm)}, got False"),
        ("model.norm", "off", f"model.norm: expected {one_of(Norm)}, got 'off'"),
        ("model.num_layers", "4.0", "model.num_layers: expected a whole number, got 4.0"),
        ("model.num_layers", "true", "model.num_layers: expected a whole number, got True"),
        ("model.num_heads", "5", "model.d_model: expected a multiple of num_heads = 5, got"),
        ("model.tie_embeddings", "1", "model.tie_embeddings: expected true or false, got 1"),
        ("optim.beta1", "1.0", "optim.beta1: expected 0 or more and less than 1, got 1.0"),
        ("optim.max_learning_rate", ".nan", "optim.max_learning_rate: expected a number, got nan"),
        ("optim.max_learning_rate", "fast", "optim.max_learning_rate: expected a number, got 'fast'"),
        ("tokenizer.vocab_size", "256", "tokenizer.vocab_size: expected at least 257"),
        (
            "tokenizer.pattern",
            "'(a'",
            "tokenizer.pattern: expected 'gpt2', 'gpt4', 'gpt4o', 'llama3', 'qwen2', 'nanochat' or a regular "
            "expression, got '(a': missing )",
        ),
        (
            "tokenizer.special_tokens",
            "[<|endoftext|>, x]",
            "tokenizer.special_tokens: expected texts of two bytes or more",
        ),
        ("sample.temperature", "-1", "sample.temperature: expected 0, or 0.001 or more, got -1.0"),
        ("sample.num_samples", "0", "sample.num_samples: expected 1 or more, got 0"),
        ("sample.num_samples", "1000000000", "sample.num_samples: expected at most 1,000,000, got 1000000000"),
        ("sample.max_new_tokens", "1000000000", "sample.max_new_tokens: expected at most 1,000,000, got 1000000000"),
        ("sample.prompts", "once", "sample.prompts: expected a list, got 'once'"),
        ("train.max_steps", "3", "train.max_steps: expected at least the sum of the schedule's warmup_steps"),
        ("train.seed", "99999999999999999999", "train.seed: expected 0 to 4294967295, got 99999999999999999999"),
        ("ablate.seeds", "[-1]", "ablate.seeds: expected 0 to 4294967295, got -1"),
        ("sample.temperature", "1e-40", "sample.temperature: expected 0, or 0.001 or more, got 1e-40"),
        ("sample.prompts", '["\\ud800"]', "sample.prompts[0]: expected text, got '\\ud800'"),
        ("model.d_model", "{{ x }}", "a key must be a word"),
        ("optim.eps", "1" + "0" * 400, "optim.eps: expected a number, got 1000"),
        ("model.d_model", "1" + "0" * 5000, "not valid YAML: cannot read '1000"),
        ("ablate.seeds", "[1, 1]", "ablate.seeds: expected at least one entry and no duplicates"),
        ("model.qk_norm", "off", "model.qk_norm: expected true or false, got 'off'"),
        ("model.ffn", "relu", f"model.ffn: expected {one_of(FeedForward)}, got 'relu'"),
        ("optim.optimizer", "sgd", "optim.optimizer: expected 'adamw' | 'muon', got 'sgd'"),
        ("optim.momentum", "1", "optim.momentum: expected 0 or more and less than 1, got 1.0"),
        ("optim.momentum", "-0.1", "optim.momentum: expected 0 or more and less than 1, got -0.1"),
        ("optim.decay_shape", "sqrt", "optim.decay_shape: expected 'linear' | '1-sqrt', got 'sqrt'"),
        ("train.document_mask", "yes", "train.document_mask: expected true or false, got 'yes'"),
        ("runtime.checkpoint_activations", "0", "runtime.checkpoint_activations: expected true or false, got 0"),
        (
            "runtime.attention_backend",
            "flash2",
            f"runtime.attention_backend: expected {one_of(AttentionBackend)}, got 'flash2'",
        ),
        ("model.num_layers", "100000", "model.num_layers: expected at most 16,384, got 100000"),
        ("model.num_layers", "0", "model.num_layers: expected 1 or more, got 0"),
        ("model.d_model", "4" + "0" * 30, "model.d_model: expected at most 1,048,576, got 4000"),
        ("model.context_length", "1" + "0" * 9, "model.context_length: expected at most 16,777,216, got 1000000000"),
        ("model.rope_theta", "1e30", "model.rope_theta: expected a positive number below 1e30, got 1e+30"),
        ("optim.warmup_steps", "-1", "optim.warmup_steps: expected 0 or more, got -1"),
        ("optim.weight_decay", "-1", "optim.weight_decay: expected 0 or more, got -1.0"),
        ("train.max_steps", "1" + "0" * 10, "train.max_steps: expected at most 1,000,000,000, got 10000000000"),
        ("train.batch_size", "2000000", "train.batch_size: expected at most 1,048,576, got 2000000"),
        ("ablate.points", "[64]", "ablate.points[0]: expected text, got 64"),
        (
            "ablate.points",
            "[64x2]",
            "ablate.points: expected width x number of layers - number of tokens, such as 64x2-4",
        ),
        ("ablate.points", "[64x-1000]", "such as 64x2-400000, got '64x-1000'"),
        ("ablate.points", "[0x2-1000]", "such as 64x2-400000, got '0x2-1000'"),
        ("ablate.points", "[64x2-0]", "such as 64x2-400000, got '64x2-0'"),
        (
            "ablate.points",
            "[65x2-102400]",
            "ablate: the cell baseline-65x2-102400-1: d_model: expected a multiple",
        ),
        ("ablate.points", "[]", "ablate.points: expected at least one entry and no duplicates, got []"),
        ("ablate.points", "[64x2-9]", "ablate: the cell baseline-64x2-9-1: expected a multiple of 1,280 training"),
        ("ablate.learning_rate", "0", "ablate.learning_rate: expected more than 0 and less than 1, got 0.0"),
        ("scale.learning_rate", "-1", "scale.learning_rate: expected more than 0 and less than 1, got -1.0"),
        ("scale.learning_rate", "1", "scale.learning_rate: expected more than 0 and less than 1, got 1.0"),
        ("optim.max_learning_rate", "1e300", "optim.max_learning_rate: expected at most 1000, got 1e+300"),
        ("optim.weight_decay", "1e300", "optim.weight_decay: expected at most 1000, got 1e+300"),
        ("optim.eps", "1e300", "optim.eps: expected at most 1000, got 1e+300"),
        ("scale.variant", "adam", "scale.variant: expected one of ablate.variants (baseline, no-norm, "),
        ("scale.num_evaluations", "0", "scale.num_evaluations: expected 1 or more, got 0"),
        ("runtime.num_processes", "100000", "runtime.num_processes: expected at most 128, got 100000"),
        ("runtime.micro_batch_size", "-1", "runtime.micro_batch_size: expected 0 or more, got -1"),
        ("ablate.switches", "[]", "ablate.switches: expected a section of keys, got []"),
        ("ablate.variants", "none", "ablate.variants: expected a mapping, got 'none'"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(text, tmp_path, key, value, message):
    with pytest.raises(UserError) as error:
        load(edited(text, key, value), tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_key_is_named_with_its_likely_meaning(text, tmp_path):
    with pytest.raises(UserError, match="optim.max_learning_rte: unknown key; did you mean optim.max_learning_rate?"):
        load(text.replace("  max_learning_rate:", "  max_learning_rte:"), tmp_path)


def test_a_missing_key_is_named(text, tmp_path):
    with pytest.raises(UserError, match="model.d_ff: missing key, expected a whole number"):
        load("\n".join(line for line in text.splitlines() if not line.startswith("  d_ff:")), tmp_path)


def test_a_repeated_key_is_named(text, tmp_path):
    with pytest.raises(UserError, match="params.yaml:.*the key 'model' appears twice"):
        load(text + "\nmodel: {}\n", tmp_path)


def test_an_ablation_of_an_unknown_variant_is_named(text, tmp_path):
    with pytest.raises(UserError, match="ablate.run: expected names from variants .*, got 'no-nrm'"):
        load(text.replace("  - no-norm\n", "  - no-nrm\n"), tmp_path)


NO_NORM = "    no-norm:\n      norm: none\n"


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("      nrm: none\n", "ablate.variants.no-norm.nrm: unknown key; did you mean ablate.variants.no-norm.norm?"),
        ("      d_model: 64\n", "ablate.variants.no-norm.d_model: unknown key; "),
        ("      norm: off\n", f"ablate.variants.no-norm.norm: expected {one_of(Norm)}, got 'off'"),
        ("      optimizer: sgd\n", "ablate.variants.no-norm.optimizer: expected 'adamw' | 'muon', got 'sgd'"),
        ("      learning_rate_scale: 0\n", "ablate.variants.no-norm.learning_rate_scale: expected a positive number"),
        ("      batch_size: 1.5\n", "ablate.variants.no-norm.batch_size: expected a whole number, got 1.5"),
        ("      batch_size: 2000000\n", "ablate.variants.no-norm.batch_size: expected at most 1,048,576, got 2000000"),
        ("      decay_fraction: -1\n", "ablate.variants.no-norm.decay_fraction: expected 0 to 1, got -1.0"),
        ("      final_learning_rate: 2\n", "ablate.variants.no-norm.final_learning_rate: expected 0 to 1, got 2.0"),
        ("      d_head: 0\n", "ablate.variants.no-norm.d_head: expected 1 or more, got 0"),
        ("      - norm\n", "ablate.variants.no-norm: expected a section of keys, got ['norm']"),
        ("", "ablate.variants.no-norm: expected a section of keys, got None"),
        (
            "      schedule: wsd\n      decay_fraction: 1\n",
            "ablate: the cell no-norm-64x2-102400-1: expected a multiple of 1,280 training tokens (one step), at least "
            "128,000 for warmup and decay, got 102,400",
        ),
    ],
)
def test_a_wrong_variant_is_named_with_what_was_expected(text, tmp_path, variant, message):
    with pytest.raises(UserError) as error:
        load(text.replace(NO_NORM, f"    no-norm:\n{variant}"), tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_variant_takes_what_it_does_not_name_from_the_switches(text, tmp_path):
    switched = text.replace("    qk_norm: false\n", "    qk_norm: true\n")  # of ablate, deeper than that of model
    params = load(switched.replace(NO_NORM, NO_NORM + "      qk_norm: false\n      batch_size: 8\n"), tmp_path)
    variants = params.ablate.variants
    assert (variants["baseline"].qk_norm, variants["baseline"]) == (True, params.ablate.switches)
    assert (
        dataclasses.replace(variants["no-norm"], norm="rmsnorm", qk_norm=True, batch_size=4) == params.ablate.switches
    )
    assert not params.model.qk_norm and not variants["no-norm"].qk_norm


def test_a_missing_switch_is_named(text, tmp_path):
    with pytest.raises(UserError, match="ablate.switches.qk_norm: missing key, expected true or false"):
        load(text.replace("    qk_norm: false\n", ""), tmp_path)
    with pytest.raises(UserError, match="ablate.switches: missing key, expected a section of keys"):
        load(re.sub(r"  switches:.*\n(    .*\n)+", "", text), tmp_path)


def test_a_variant_that_does_not_fit_a_size_is_named_where_it_is_run(text, tmp_path):
    odd = text.replace("    silu:\n", "    silu:\n      d_head: 24\n")
    odd = odd.replace("  - 64x2-102400\n", "  - 128x2-102400\n")  # 5 heads
    with pytest.raises(UserError, match="ablate: the cell silu-128x2-102400-1: d_model: expected a multiple of"):
        load(odd, tmp_path)
    assert load(odd.replace("  - silu\n", ""), tmp_path).ablate.variants["silu"].d_head == 24


def test_the_schedule_of_the_main_run_does_not_bind_the_ablation(text, tmp_path):
    long_fall = edited(edited(text, "optim.schedule", "wsd"), "optim.decay_steps", "500")
    assert load(long_fall, tmp_path).optim.decay_steps == 500


def test_a_variant_whose_name_cannot_be_a_key_is_named(text, tmp_path):
    with pytest.raises(UserError, match="ablate.variants: expected names of at most 100 letters.*, got 'no.norm'"):
        load(text.replace("    no-norm:\n", "    no.norm:\n").replace("  - no-norm\n", "  - no.norm\n"), tmp_path)


@pytest.mark.parametrize("content", ["", "model: [", "just text", "- a\n- b", "a: b: c", "model: &model [*model]"])
def test_a_file_that_is_no_mapping_is_refused_in_one_line(tmp_path, content):
    with pytest.raises(UserError) as error:
        load(content, tmp_path)
    assert "params.yaml" in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_and_a_non_utf8_one_are_named(tmp_path):
    with pytest.raises(UserError, match="params.yaml: there is no such file; run from the project's folder"):
        config.load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"model:\xff")
    with pytest.raises(UserError, match="not UTF-8 at byte 6"):
        config.load(tmp_path / "params.yaml")


def test_sections_are_frozen(params):
    with pytest.raises(AttributeError):
        params.model.d_model = 3
