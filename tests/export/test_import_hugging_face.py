import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedConfig, Qwen3Config

from lm.errors import UserError
from lm.export import import_hugging_face as importer
from lm.export.hugging_face import export_hugging_face
from lm.export.import_hugging_face import import_hugging_face
from lm.model.files import load_model
from lm.tokenizer.tokenizer import Tokenizer

SWITCHES = [{}, {"num_kv_heads": 2, "tie_embeddings": True}, {"num_kv_heads": 1, "qk_norm": True, "rope_theta": 500.0}]


@pytest.fixture
def exported(folders, tmp_path):
    export_hugging_face(*folders(), tmp_path / "hf")
    return tmp_path / "hf"


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def read_back(folder, tmp_path):
    import_hugging_face(folder, tmp_path / "back", tmp_path / "back-tokenizer")
    tokenizer = Tokenizer.load(tmp_path / "back-tokenizer")
    return load_model(tmp_path / "back", tokenizer.hash), tokenizer


@pytest.mark.parametrize("switches", SWITCHES, ids=["llama", "llama, grouped and tied", "qwen3"])
def test_an_exported_model_is_imported_byte_for_byte(folders, tmp_path, switches):
    model, tokenizer = folders(**switches)
    export_hugging_face(model, tokenizer, tmp_path / "hf")
    import_hugging_face(tmp_path / "hf", tmp_path / "back", tmp_path / "back-tokenizer")
    for folder, back in ((model, tmp_path / "back"), (tokenizer, tmp_path / "back-tokenizer")):
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            path.name: path.read_bytes() for path in back.iterdir()
        }


@torch.no_grad()
def test_a_folder_written_by_transformers_has_equal_logits(exported, tmp_path):
    """transformers writes `rope_parameters`, and splits a large model into several files."""
    theirs = AutoModelForCausalLM.from_pretrained(exported)
    ids = torch.randint(theirs.config.vocab_size, (2, 16))
    expected = theirs(ids).logits
    shutil.copytree(exported, tmp_path / "theirs")
    (tmp_path / "theirs" / "model.safetensors").unlink()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    assert "rope_theta" not in json.loads((tmp_path / "theirs" / "config.json").read_text())
    model, _ = read_back(tmp_path / "theirs", tmp_path)
    torch.testing.assert_close(model(ids), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_weights_are_converted_to_float32_exactly(exported, tmp_path, dtype):
    weights = {name: weight.to(dtype) for name, weight in load_file(exported / "model.safetensors").items()}
    save_file(weights, exported / "model.safetensors")
    model, _ = read_back(exported, tmp_path)
    assert model.lm_head.weight.dtype == torch.float32
    assert model.lm_head.weight.equal(weights["lm_head.weight"].float())


@torch.no_grad()
def test_missing_keys_have_the_defaults_of_transformers(exported, tmp_path, tokenizer):
    """Older versions of transformers did not write keys that have default values."""
    shape = {
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "max_position_embeddings": 16,
        "rms_norm_eps": 1e-5,
    }
    theirs = LlamaForCausalLM(LlamaConfig(**shape)).eval()
    save_file(theirs.state_dict(), exported / "model.safetensors")
    (exported / "config.json").write_text(json.dumps({"model_type": "llama", **shape}))
    ids = torch.randint(tokenizer.vocab_size, (2, 16))
    model, _ = read_back(exported, tmp_path)
    torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [LlamaConfig(), Qwen3Config()], ids=["llama", "qwen3"])
def test_no_setting_of_transformers_is_ignored(config):
    without_effect = {"initializer_range", "attention_dropout"}  # matter only in training
    without_effect |= {"use_cache", "pretraining_tp"}  # matter only for speed
    without_effect |= {"sliding_window", "max_window_layers"}  # matter only with `use_sliding_window`
    source = Path(importer.__file__).read_text(encoding="utf-8")
    for name in config.to_dict().keys() - PreTrainedConfig().to_dict().keys() - without_effect:
        assert f'"{name}"' in source or name.endswith("_token_id"), name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "mistral"}, "model_type: expected 'llama' or 'qwen3', got 'mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act: expected silu, got gelu"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps: expected 1e-05, got 1e-06"),
        ({"attention_bias": True}, "attention_bias: expected False, got True"),
        ({"mlp_bias": True}, "mlp_bias: expected False, got True"),
        ({"use_sliding_window": True}, "use_sliding_window: expected False, got True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types: expected only 'full_attention'"),
        ({"layer_types": 5}, "layer_types: expected only 'full_attention', got 5"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: expected None, got {'bits': 4}"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "expected RoPE without scaling"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "expected RoPE without scaling"),
        ({"rope_scaling": {"type": "linear"}}, "expected RoPE without scaling"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1, got 0.5"),
        ({"rope_theta": "many"}, "rope_theta: expected a positive number below 1e30, got 'many'"),
        ({"rope_theta": float("nan")}, "rope_theta: expected a positive number"),
        ({"rope_theta": -1}, "rope_theta: expected a positive number"),
        ({"head_dim": 16}, "head_dim: expected hidden_size / num_attention_heads, got 16"),
        ({"head_dim": "8"}, "head_dim: expected hidden_size / num_attention_heads, got '8'"),
        ({"model_type": "qwen3", "head_dim": None}, "head_dim: expected hidden_size / num_attention_heads, got 128"),
        ({"hidden_size": None}, "hidden_size: expected a positive integer, got None"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers: expected a positive integer, got 2.0"),
        ({"num_attention_heads": 0}, "num_attention_heads: expected a positive integer, got 0"),
        ({"num_key_value_heads": 3}, "num_kv_heads: expected a divisor"),
        ({"vocab_size": 1000}, "the model has 1,000 tokens and its tokenizer"),
        ({"num_hidden_layers": 3}, "missing model.layers.2.input_layernorm.weight and 8 more"),
        ({"num_hidden_layers": 1}, "unexpected model.layers.1.input_layernorm.weight and 8 more"),
        ({"intermediate_size": 50}, "expected the shape [32, 50], got [32, 48]"),
        ({"tie_word_embeddings": True}, "unexpected lm_head.weight and 0 more"),
    ],
)
def test_unsupported_models_are_refused_before_writing(exported, tmp_path, values, message):
    change(exported / "config.json", **values)
    with pytest.raises(UserError) as error:
        read_back(exported, tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "back").exists() and not (tmp_path / "back-tokenizer").exists()


@pytest.mark.parametrize(
    "name", ["../elsewhere.safetensors", "/etc/passwd", "a/b.safetensors", "pytorch_model.bin", "..", 7, None]
)
def test_an_index_may_only_name_files_in_its_folder(exported, tmp_path, name):
    shutil.copy(exported / "model.safetensors", tmp_path / "elsewhere.safetensors")
    (exported / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": name}}
    (exported / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"expected the name of a .safetensors file in the same folder"):
        read_back(exported, tmp_path)


@pytest.mark.parametrize("damage", ["pickle", "cut", "missing", "missing part", "wrong part", "no map", "integers"])
def test_damaged_weights_are_refused_in_one_line(exported, tmp_path, damage):
    path, index = exported / "model.safetensors", exported / "model.safetensors.index.json"
    weights = {name: weight.clone() for name, weight in load_file(path).items()}  # copies: the file is damaged below
    match damage:
        case "pickle":
            torch.save(weights, path)
        case "cut":
            path.write_bytes(path.read_bytes()[:-9])
        case "missing":
            path.rename(exported / "pytorch_model.bin")
        case "missing part" | "wrong part":
            path.unlink()
            index.write_text(json.dumps({"weight_map": dict.fromkeys(weights, "part.safetensors")}))
            if damage == "wrong part":
                save_file({"other": torch.zeros(1)}, exported / "part.safetensors")
        case "no map":
            path.unlink()
            index.write_text("{}")
        case "integers":
            save_file({name: weight.to(torch.int8) for name, weight in weights.items()}, path)
    with pytest.raises(UserError) as error:
        read_back(exported, tmp_path)
    assert str(exported) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_folder_without_a_readable_configuration_is_refused(exported, tmp_path, text):
    (exported / "config.json").unlink()
    if text is not None:
        (exported / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json: "):
        read_back(exported, tmp_path)


def test_a_tokenizer_without_an_end_of_text_token_is_refused(exported, tmp_path):
    content = json.loads((exported / "tokenizer.json").read_text())
    content["added_tokens"] = []
    (exported / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"no special token '<\|endoftext\|>'"):
        read_back(exported, tmp_path)


@pytest.mark.parametrize("used", ["model", "tokenizer"])
def test_folders_in_use_are_not_changed(exported, tmp_path, used):
    before = {path: path.read_bytes() for path in (tmp_path / used).iterdir()}
    outs = {"model": tmp_path / "back", "tokenizer": tmp_path / "back-tokenizer"} | {used: tmp_path / used}
    with pytest.raises(UserError, match="already in use"):
        import_hugging_face(exported, outs["model"], outs["tokenizer"])
    assert {path: path.read_bytes() for path in (tmp_path / used).iterdir()} == before
