import dataclasses

import pytest
import torch

from lm.errors import UserError
from lm.model.transformer import TransformerBlock, TransformerLM
from lm.planning.plan import plan
from lm.report.blocks import Diagram, Facts, Plot
from lm.report.model import MODEL, _in_words, layers
from lm.report.page import fill
from lm.report.run import Run
from lm.training.config import RunConfig

VARIANTS = [
    {},
    {"norm": "layernorm"},
    {"norm": "none"},
    {"norm_position": "post"},
    {"norm_position": "post", "norm": "none"},
    {"position": "learned"},
    {"position": "none"},
    {"qk_norm": True},
    {"ffn": "silu"},
    {"ffn": "relu_squared"},
    {"canon": True},
    {"canon": True, "norm_position": "post"},
    {"num_kv_heads": 2},
    {"num_kv_heads": 1},
    {"tie_embeddings": True},
    {"num_layers": 1},
]


def with_model(run, **changes):
    """The run with other parameters of the model."""
    params = run.params
    other = Run(run.folder)
    other.__dict__["params"] = dataclasses.replace(params, model=dataclasses.replace(params.model, **changes))
    return other


def find(model, text):
    """The layers whose name contains a text."""
    found = []
    for layer in model:
        found += [layer] * (text in layer.name) + find(layer.layers, text)
    return found


def block_of(model):
    (block,) = find(model, "block")
    return block


@pytest.mark.parametrize("changes", VARIANTS)
def test_parameters_are_those_of_pytorchs_modules(small, changes):
    config = dataclasses.replace(small, **changes)
    with torch.device("meta"):
        model = TransformerLM(config, vocab_size=61)
    drawn = layers(config, 61)
    copies = {id(block_of(drawn)): config.num_layers}
    total = sum(layer.parameters * copies.get(id(layer), 1) for layer in drawn)
    assert total == sum(p.numel() for p in model.parameters())
    for name in ("ln1", "attn", "ln2", "ffn", "canon_a", "canon_c"):
        numel = sum(p.numel() for p in getattr(model.layers[0], name).parameters())
        assert sum(layer.parameters for layer in find(drawn, f"({name})") if layer.parameters) == numel


@pytest.mark.parametrize("changes", VARIANTS)
def test_a_layer_has_the_parameters_of_the_layers_within(small, changes):
    def check(model):
        for layer in model:
            if layer.layers:
                assert layer.parameters == sum(inner.parameters for inner in layer.layers)
                check(layer.layers)

    check(layers(dataclasses.replace(small, **changes), 61))


@pytest.mark.parametrize("changes", VARIANTS)
def test_the_drawn_block_computes_what_the_block_computes(small, changes):
    config = dataclasses.replace(small, position="none", **{k: v for k, v in changes.items() if k != "position"})
    block = TransformerBlock(config)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = y = torch.randn(1, 5, config.d_model)
    for layer in block_of(layers(config, 61)).layers:
        if layer.residual:
            y = eval(layer.name, {**block._modules, "x": y})
            # What is drawn within is what the expression applies, the innermost function first.
            applied = [part.split("(")[0] for part in layer.name.removeprefix("x + ").rstrip(")x").split("(")]
            drawn = [inner.name.split("(")[1].split(")")[0] for inner in layer.layers]
            assert [name for name in applied[::-1] if name] == drawn
        else:
            y = block._modules[layer.name.split("(")[1].rstrip(")")](y)
    torch.testing.assert_close(y, block(x))


def test_shapes_are_those_of_the_tensors(small):
    config = dataclasses.replace(small, num_kv_heads=2, ffn="silu")
    model = TransformerLM(config, vocab_size=61)
    shapes = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda module, inputs, output, name=name: shapes.update({name: output.shape}))
    model(torch.zeros(7, dtype=torch.long))
    drawn = layers(config, 61)

    def shape_of(text):
        return {layer.shape for layer in find(drawn, text) if layer.shape}

    def written(name):
        return str(tuple(shapes[name])).replace("(7,", "(T,")

    assert shape_of("lm_head") == {written("lm_head")} == {"(T, 61)"}
    assert shape_of("(ffn)") == {written("layers.0.ffn")}
    assert shape_of("h = silu") == {written("layers.0.ffn.w1")} == {"(T, 72)"}
    assert shape_of("block") == {written("layers.1")}
    assert shape_of("q_proj") == {"(4, T, 8), 2 × (2, T, 8)"}
    assert shapes["layers.0.attn.q_proj"] == (7, 4 * 8)
    assert shapes["layers.0.attn.k_proj"] == shapes["layers.0.attn.v_proj"] == (7, 2 * 8)


def test_switches_are_drawn(small):
    def names(**changes):
        drawn = layers(dataclasses.replace(small, **changes), 61)
        return [layer.name for layer in find(drawn, "")]

    assert any("RoPE" in name for name in names())
    assert not any("RoPE" in name for name in names(position="learned"))
    assert "+ position embeddings" in names(position="learned")
    assert not any("position" in name for name in names(position="none"))
    assert "attention (attn), 4 heads of width 8" in names()
    assert "attention (attn), 4 heads of width 8, keys and values shared by groups of 2" in names(num_kv_heads=2)
    assert "attention (attn), 1 head of width 32" in names(num_heads=1, num_kv_heads=1)
    assert any("q_norm" in name for name in names(qk_norm=True))
    assert "head (lm_head), the same matrix as the token embeddings" in names(tie_embeddings=True)
    assert "RMSNorm (ln_final)" in names()
    assert "RMSNorm (ln_final)" not in names(norm_position="post")
    assert not any("Norm" in name for name in names(norm="none"))
    assert "each of the 2 blocks" in names()
    assert "the only block" in names(num_layers=1)


def test_the_section_needs_only_the_parameters(planned_run):
    # 2 · 2048 · 128 = 524,288 in embeddings and head; 2 (4·128² + 3·128·344) + 5·128 = 395,904 in blocks and norms.
    assert MODEL.finding(planned_run) == (
        "The model has 0.92 million parameters, 57% of them in the embeddings and the head."
    )
    diagram, facts, parameters, memory = fill(planned_run, "test", [MODEL]).sections[0].blocks
    assert isinstance(diagram, Diagram) and isinstance(facts, Facts)
    assert facts.rows[:2] == [("parameters", "920,192"), ("without embeddings and head", "395,904")]
    # 6 FLOPs per weight that is multiplied, and 12 · 2 layers · 128 · 320 tokens for attention.
    flops = 6 * (920192 - 2048 * 128 - 5 * 128) + 12 * 2 * 128 * 320
    assert facts.rows[2] == ("training, per token", f"{flops / 1e6:.3g}M FLOPs")
    assert isinstance(parameters, Plot) and isinstance(memory, Plot)
    assert parameters.alt == (
        "Parameters by part: token embeddings 262,144, attention 131,072, ffn 264,192, norms 640, lm head 262,144"
    )
    assert "Canon" not in fill(planned_run, "test", [MODEL]).html()


def test_memory_is_that_of_the_plan(planned_run, tmp_path):
    params = planned_run.params
    training = RunConfig(model=params.model, optim=params.optim, train=params.train)
    planned = plan(training, 2048, params.runtime, torch.device("cpu"), tmp_path, 1)
    memory = fill(planned_run, "test", [MODEL]).sections[0].blocks[3]
    megabytes = f"{sum(planned.memory.values()) / 1e6:.3g} MB"
    assert memory.note == (
        f"{megabytes} on the CPU at the peak of a training step with micro batches of 8 sequences, "
        "while a checkpoint is written."
    )


def test_memory_of_several_gpus(planned_run):
    params = planned_run.params
    runtime = dataclasses.replace(params.runtime, device="cuda", num_processes=4)
    planned_run.__dict__["params"] = dataclasses.replace(params, runtime=runtime)
    memory = fill(planned_run, "test", [MODEL]).sections[0].blocks[3]
    assert "on the GPU at the peak of a training step with micro batches of 2 sequences" in memory.note
    assert memory.note.endswith("; the copy for a checkpoint is in the CPU's memory; in each of 4 processes.")


def test_a_batch_that_cannot_be_shared_leaves_the_other_blocks(planned_run):
    params = planned_run.params
    runtime = dataclasses.replace(params.runtime, num_processes=16)
    planned_run.__dict__["params"] = dataclasses.replace(params, runtime=runtime)
    blocks = fill(planned_run, "test", [MODEL]).sections[0].blocks
    assert [block.kind for block in blocks] == ["diagram", "facts", "plot", "missing"]
    assert "expected a multiple of runtime.num_processes = 16, got 8" in blocks[3].message


def test_the_vocabulary_is_that_of_the_tokenizer_once_there_is_one(encoded_run):
    (head,) = find(fill(encoded_run, "test", [MODEL]).sections[0].blocks[0].layers, "lm_head")
    assert head.shape == "(T, 300)"


def test_tied_embeddings_are_the_head(planned_run):
    run = with_model(planned_run, tie_embeddings=True)
    assert MODEL.finding(run).endswith("of them in the embeddings, which are also the head.")


def test_a_folder_without_parameters(tmp_path):
    with pytest.raises(UserError, match=r"params\.yaml"):
        MODEL.finding(Run(tmp_path))


@pytest.mark.parametrize(
    ("number", "text"),
    [(920192, "0.92 million"), (124439808, "124 million"), (1557611200, "1.56 billion"), (20312, "20,312")],
)
def test_numbers_in_words(number, text):
    assert _in_words(number) == text


def test_a_residual_connection_is_drawn_beside_its_layers(planned_run):
    html = fill(planned_run, "test", [MODEL]).html()
    assert html.count('<li class="residual">') == 2
    assert "<code>x + attn(ln1(x))</code>" in html
