import pytest
import torch
from ruamel.yaml import YAML

from lm import config
from lm.errors import UserError
from lm.model.transformer import TransformerLM
from lm.presets.preset import apply_preset, preset_names

# vocab_size, context_length and the number of parameters. Without its embeddings, the course's shape has 17.6 million,
# and GPT-2 small's with 32,000 tokens has 110 million.
SHAPES = {
    "tinystories": (10_000, 256, 22_696_448),
    "tinystories-low-resource": (10_000, 256, 22_696_448),
    "owt": (32_000, 256, 45_224_448),
    "owt-125m": (32_000, 1024, 134_105_856),
}
# How many tokens the training reads.
TOKENS = {
    "tinystories": 327_680_000,
    "tinystories-low-resource": 40_960_000,
    "owt": 50_000_000,
    "owt-125m": 2_457_600_000,
}


@pytest.fixture
def path(project, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes((project / "params.yaml").read_bytes())
    return path


@pytest.mark.parametrize("name", SHAPES)
def test_a_preset_is_valid_and_its_model_has_the_documented_size(path, name):
    apply_preset(name, path)
    params = config.load(path)
    vocab_size, context_length, num_parameters = SHAPES[name]
    assert (params.tokenizer.vocab_size, params.model.context_length) == (vocab_size, context_length)
    with torch.device("meta"):
        model = TransformerLM(params.model, params.tokenizer.vocab_size)
    assert sum(p.numel() for p in model.parameters()) == num_parameters
    tokens = params.train.max_steps * params.train.batch_size * params.model.context_length
    assert tokens == pytest.approx(TOKENS[name], rel=0.001)


def test_a_preset_keeps_every_comment_and_changes_only_the_lines_that_differ(path):
    before = path.read_text(encoding="utf-8").splitlines()
    changes = apply_preset("owt-125m", path)
    after = path.read_text(encoding="utf-8").splitlines()
    assert len(before) == len(after)
    differing = [(old, new) for old, new in zip(before, after) if old != new]
    assert len(differing) == len(changes) + (9 - 1) > 20  # scale.points is one change of nine lines
    for old, new in differing:
        assert old.partition("#")[2].strip() == new.partition("#")[2].strip()


def test_the_released_params_are_the_preset_laptop(path):
    before = path.read_bytes()
    assert apply_preset("laptop", path) == []
    assert path.read_bytes() == before


def test_a_link_stays_a_link(path, tmp_path):
    (tmp_path / "link.yaml").symlink_to("params.yaml")
    assert apply_preset("tinystories", tmp_path / "link.yaml")
    assert (tmp_path / "link.yaml").is_symlink() and apply_preset("tinystories", path) == []


def test_a_file_that_matches_the_preset_keeps_its_bytes(path):
    path.write_text(path.read_text(encoding="utf-8").replace("  seed: 1\n", "  seed:   1\n"), encoding="utf-8")
    before = path.read_bytes()
    assert apply_preset("laptop", path) == [] and path.read_bytes() == before


def test_a_preset_leaves_nothing_of_an_earlier_one_behind(path):
    original = path.read_bytes()
    directly = {}
    for name in preset_names():
        path.write_bytes(original)
        apply_preset(name, path)
        directly[name] = path.read_bytes()
    for name in reversed(preset_names()):
        apply_preset(name, path)
        assert path.read_bytes() == directly[name], name


def test_all_presets_set_the_same_keys(project):
    def keys(preset: dict[str, dict[str, object]]) -> list[str]:
        return [f"{section}.{name}" for section, values in preset.items() for name in values]

    presets = [YAML(typ="safe").load(file) for file in (project / "lm/presets").glob("*.yaml")]
    assert len(presets) == len(preset_names())
    assert all(keys(preset) == keys(presets[0]) for preset in presets)


def test_the_error_for_an_unknown_preset_lists_the_presets(path):
    with pytest.raises(UserError, match="no preset 'huge'; the presets are laptop, owt, owt-125m, smoke, tinystories"):
        apply_preset("huge", path)


def test_an_invalid_file_is_not_changed(path):
    path.write_text(path.read_text(encoding="utf-8").replace("norm: rmsnorm", "norm: batchnorm"), encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(UserError, match="expected 'rmsnorm'"):
        apply_preset("tinystories", path)
    assert path.read_bytes() == before


def test_a_file_with_values_that_do_not_fit_the_preset_is_not_changed(path):
    yaml = YAML()
    params = yaml.load(path)
    params["ablate"]["switches"]["d_head"] = 24  # 64 = 2 heads of 32, but 512 has no 21 heads
    yaml.dump(params, path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="d_model: expected a multiple of num_heads = 21, got 512"):
        apply_preset("tinystories", path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
