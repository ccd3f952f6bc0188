import dataclasses
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    Qwen3Config,
)

from lm.errors import UserError
from lm.export import import_hugging_face as importer
from lm.export.hugging_face import export_hugging_face
from lm.export.import_hugging_face import import_hugging_face
from lm.model.files import load_model
from lm.tokenizer.tokenizer import Tokenizer
from lm.training.config import RunConfig
from lm.training.data import open_data
from lm.training.evaluation import mean_loss
from lm.training.loop import OutputPaths, Result
from lm.training.train import train
from tests.tokens.conftest import encode, write_text

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
    known = {field.name for field in dataclasses.fields(importer._Config)}
    for name in config.to_dict().keys() - PreTrainedConfig().to_dict().keys() - without_effect:
        assert name in known or name.endswith("_token_id"), name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "mistral"}, "model_type: expected 'llama' | 'qwen3', got 'mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act: expected 'silu', got 'gelu'"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps: expected 1e-05, got 1e-06"),
        ({"attention_bias": True}, "attention_bias: expected False, got True"),
        ({"mlp_bias": True}, "mlp_bias: expected False, got True"),
        ({"use_sliding_window": True}, "use_sliding_window: expected False, got True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types[1]: expected 'full_attention', got"),
        ({"layer_types": 5}, "layer_types: expected a list, got 5"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: expected None, got {'bits': 4}"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "expected RoPE without scaling"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "expected RoPE without scaling"),
        ({"rope_scaling": {"type": "linear"}}, "expected RoPE without scaling"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1, got 0.5"),
        ({"rope_theta": "many"}, "rope_theta: expected a number, got 'many'"),
        ({"rope_theta": float("nan")}, "rope_theta: expected a number, got nan"),
        ({"rope_theta": -1}, "rope_theta: expected a positive number below 1e30, got -1"),
        ({"rope_parameters": {"rope_theta": 1e30}}, "rope_theta: expected a positive number below 1e30, got 1e+30"),
        ({"head_dim": 16}, "head_dim: expected hidden_size / num_attention_heads, got 16"),
        ({"head_dim": 0}, "head_dim: expected hidden_size / num_attention_heads, got 0"),
        ({"head_dim": "8"}, "head_dim: expected a whole number, got '8'"),
        ({"model_type": "qwen3", "head_dim": None}, "head_dim: expected hidden_size / num_attention_heads, got 128"),
        ({"hidden_size": None}, "hidden_size: expected a whole number, got None"),
        ({"hidden_size": 1e30}, "hidden_size: expected a whole number, got 1e+30"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers: expected a whole number, got 2.0"),
        ({"num_hidden_layers": 100_000}, "num_layers: expected at most 16,384, got 100000"),
        ({"num_hidden_layers": 16_000}, "missing model.layers.10.input_layernorm.weight and 143981 more"),
        ({"num_attention_heads": 0}, "num_attention_heads: expected 1 or more, got 0"),
        ({"max_position_embeddings": True}, "max_position_embeddings: expected a whole number, got True"),
        ({"tie_word_embeddings": []}, "tie_word_embeddings: expected true or false, got []"),
        ({"num_key_value_heads": 3}, "num_kv_heads: expected a divisor"),
        ({"vocab_size": 100}, "the model has 100 tokens and its tokenizer 377"),
        ({"vocab_size": 1000}, "expected the shape [1000, 32], got [377, 32]"),
        ({"num_hidden_layers": 3}, "missing model.layers.2.input_layernorm.weight and 8 more"),
        ({"num_hidden_layers": 1}, "unexpected model.layers.1.input_layernorm.weight and 8 more"),
        ({"intermediate_size": 50}, "expected the shape [32, 50], got [32, 48]"),
        (
            {"tie_word_embeddings": True},
            "lm_head.weight differs from model.embed_tokens.weight, but tie_word_embeddings",
        ),
    ],
)
def test_unsupported_models_are_refused_before_writing(exported, tmp_path, values, message):
    change(exported / "config.json", **values)
    with pytest.raises(UserError) as error:
        read_back(exported, tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "back").exists() and not (tmp_path / "back-tokenizer").exists()


@pytest.mark.parametrize(
    "name", ["../elsewhere.safetensors", "/etc/passwd", "a/b.safetensors", "pytorch_model.bin", "..", ""]
)
def test_an_index_may_only_name_files_in_its_folder(exported, tmp_path, name):
    shutil.copy(exported / "model.safetensors", tmp_path / "elsewhere.safetensors")
    (exported / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": name}}
    (exported / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"expected the name of a .safetensors file in the same folder"):
        read_back(exported, tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        "pickle",
        "cut",
        "missing",
        "missing part",
        "wrong part",
        "no map",
        "a number for a file",
        "integers",
        "pipe",
        "nan",
    ],
)
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
        case "a number for a file":
            path.unlink()
            index.write_text('{"weight_map": {"lm_head.weight": 7}}')
        case "pipe":
            path.unlink()
            os.mkfifo(path)
        case "nan":
            weights["lm_head.weight"][3, 5] = torch.nan
            save_file(weights, path)
        case "integers":
            save_file({name: weight.to(torch.int8) for name, weight in weights.items()}, path)
    with pytest.raises(UserError) as error:
        read_back(exported, tmp_path)
    assert str(exported) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "back").exists()


def test_a_tied_model_may_store_its_head_too(folders, tmp_path):
    model, tokenizer = folders(tie_embeddings=True)
    export_hugging_face(model, tokenizer, tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "hf" / "model.safetensors")
    read_back(tmp_path / "hf", tmp_path)
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_rows_that_pad_the_vocabulary_are_dropped(folders, tokenizer, tmp_path, tied):
    model, tokenizer_folder = folders(tie_embeddings=tied)
    export_hugging_face(model, tokenizer_folder, tmp_path / "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    theirs.resize_token_embeddings(pad_to_multiple_of=64)
    theirs.save_pretrained(tmp_path / "hf")
    assert tokenizer.vocab_size == 377 and theirs.config.vocab_size == 384
    assert import_hugging_face(tmp_path / "hf", tmp_path / "back", tmp_path / "back-tokenizer") == 7
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", "null", '{"model_type": "llama", "model_type": "llama"}'])
def test_a_folder_without_a_readable_configuration_is_refused(exported, tmp_path, text):
    (exported / "config.json").unlink()
    if text is not None:
        (exported / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json:"):
        read_back(exported, tmp_path)


def test_a_tokenizer_without_an_end_of_text_token_is_refused(exported, tmp_path):
    content = json.loads((exported / "tokenizer.json").read_text())
    content["added_tokens"], content["post_processor"] = [], None
    (exported / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"no special token '<\|endoftext\|>'"):
        read_back(exported, tmp_path)


def test_a_model_that_was_fine_tuned_in_transformers_trains_on_here(exported, tokenizer, tmp_path, params):
    """Export, fine-tune in transformers, save model and tokenizer there, import, and train on another text here."""
    text, theirs = "the boy said they'll know. " * 4, AutoTokenizer.from_pretrained(exported)
    model = AutoModelForCausalLM.from_pretrained(exported).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = theirs(text, return_tensors="pt", truncation=True).input_ids
    assert ids[0, 0] == tokenizer.end_of_text_id and ids.shape == (1, 16)
    losses = []
    for _ in range(4):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval().save_pretrained(tmp_path / "tuned")
    theirs.save_pretrained(tmp_path / "tuned")

    back, back_tokenizer = read_back(tmp_path / "tuned", tmp_path)
    assert back_tokenizer.hash == tokenizer.hash
    with torch.no_grad():
        torch.testing.assert_close(back(ids), model(ids).logits, rtol=0, atol=1e-5)

    own_text = " Once upon a time, the boy said 'no'.<|endoftext|>" * 20
    raw = write_text(tmp_path / "raw", {"train": [own_text], "val": [own_text]})
    encode(raw, back_tokenizer, tmp_path / "tokens")
    run = RunConfig(
        model=back.config,
        optim=dataclasses.replace(params.optim, warmup_steps=1),
        train=dataclasses.replace(
            params.train, max_steps=4, batch_size=4, eval_every=2, initial_model=str(tmp_path / "back")
        ),
    )
    paths = OutputPaths(
        checkpoints=tmp_path / "checkpoints",
        tracking=tmp_path / "tracking",
        curve=tmp_path / "curve.csv",
        metrics=tmp_path / "metrics.json",
    )
    results: list[Result] = []
    data = open_data(tmp_path / "tokens", back_tokenizer)
    train(run, data, back_tokenizer, params.runtime, paths, results.append, lambda line: None)
    (history,) = [result.history for result in results]
    start = mean_loss(back, data.val, back_tokenizer.end_of_text_id, 4, torch.device("cpu"), "float32")
    assert history[0]["val_loss"] == start and history[-1]["val_loss"] < start


@pytest.mark.parametrize("used", ["model", "tokenizer"])
def test_folders_in_use_are_not_changed(exported, tmp_path, used):
    before = {path: path.read_bytes() for path in (tmp_path / used).iterdir()}
    outs = {"model": tmp_path / "back", "tokenizer": tmp_path / "back-tokenizer"} | {used: tmp_path / used}
    with pytest.raises(UserError, match="already exists; choose a new or empty folder"):
        import_hugging_face(exported, outs["model"], outs["tokenizer"])
    assert {path: path.read_bytes() for path in (tmp_path / used).iterdir()} == before
