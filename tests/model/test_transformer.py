import dataclasses
import itertools

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lm.model.transformer import TransformerBlock, TransformerLM

BACKENDS = ["sdpa", "reference", "flash"]


def llama_of(model: TransformerLM) -> LlamaForCausalLM:
    """The same weights in transformers' Llama, which turns the halves of a head where ours turns neighbours."""
    config = model.config
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=model.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.d_ff,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            max_position_embeddings=config.context_length,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            rms_norm_eps=1e-5,
            tie_word_embeddings=config.tie_embeddings,
        )
    )

    def halves(weight: torch.Tensor) -> torch.Tensor:
        return weight.unflatten(0, (-1, config.d_head // 2, 2)).transpose(1, 2).flatten(0, 2)

    weights = {
        "model.embed_tokens.weight": model.token_embeddings.weight,
        "model.norm.weight": model.ln_final.weight,
        "lm_head.weight": model.lm_head.weight,
    }
    for index, layer in enumerate(model.layers):
        name = f"model.layers.{index}"
        weights |= {
            f"{name}.input_layernorm.weight": layer.ln1.weight,
            f"{name}.self_attn.q_proj.weight": halves(layer.attn.q_proj.weight),
            f"{name}.self_attn.k_proj.weight": halves(layer.attn.k_proj.weight),
            f"{name}.self_attn.v_proj.weight": layer.attn.v_proj.weight,
            f"{name}.self_attn.o_proj.weight": layer.attn.output_proj.weight,
            f"{name}.post_attention_layernorm.weight": layer.ln2.weight,
            f"{name}.mlp.gate_proj.weight": layer.ffn.w1.weight,
            f"{name}.mlp.down_proj.weight": layer.ffn.w2.weight,
            f"{name}.mlp.up_proj.weight": layer.ffn.w3.weight,
        }
    llama.load_state_dict(weights)
    return llama.eval()


@pytest.mark.parametrize("num_kv_heads", [4, 2])
@pytest.mark.parametrize("tie_embeddings", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_equal_those_of_transformers_llama(small, num_kv_heads, tie_embeddings, backend):
    torch.manual_seed(0)
    config = dataclasses.replace(small, num_kv_heads=num_kv_heads, tie_embeddings=tie_embeddings)
    model = TransformerLM(config, vocab_size=61, attention_backend=backend)
    for name, weight in model.named_parameters():
        if "ln" in name:
            weight.data = 1 + 0.1 * torch.randn_like(weight)
    token_ids = torch.randint(61, (3, 16))
    with torch.no_grad():
        ours, theirs = model(token_ids), llama_of(model)(token_ids).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


SWITCHES = list(
    itertools.product(
        ["rmsnorm", "layernorm", "none"],
        ["pre", "post"],
        ["rope", "learned", "none"],
        ["swiglu", "silu"],
    )
)


@pytest.mark.parametrize(("norm", "norm_position", "position", "ffn"), SWITCHES)
def test_every_switch_gives_a_causal_model_whose_weights_all_learn(small, norm, norm_position, position, ffn):
    torch.manual_seed(0)
    config = dataclasses.replace(small, norm=norm, norm_position=norm_position, position=position, ffn=ffn)
    model = TransformerLM(config, vocab_size=61)
    token_ids = torch.randint(61, (2, 12))
    logits = model(token_ids)
    assert logits.shape == (2, 12, 61)
    changed = token_ids.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 61
    torch.testing.assert_close(model(changed)[:, :8], logits[:, :8])
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_without_positions_the_last_token_sees_an_unordered_set(small):
    model = TransformerLM(dataclasses.replace(small, position="none", num_layers=1), vocab_size=61)
    ids = torch.tensor([5, 17, 3, 9, 30])
    shuffled = torch.tensor([9, 3, 17, 5, 30])
    torch.testing.assert_close(model(ids)[-1], model(shuffled)[-1])
    ordered = TransformerLM(dataclasses.replace(small, num_layers=1), vocab_size=61)
    assert not torch.allclose(ordered(ids)[-1], ordered(shuffled)[-1])


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_given_positions_shift_the_model(small, position):
    model = TransformerLM(dataclasses.replace(small, position=position), vocab_size=61)
    ids = torch.randint(61, (2, 6))
    torch.testing.assert_close(model(ids), model(ids, torch.arange(6).expand(2, 6)))
    shifted = model(ids, torch.arange(3, 9).expand(2, 6))
    # rope knows distances only, learned positions are absolute
    assert torch.allclose(shifted, model(ids), atol=1e-4) == (position == "rope")


def test_pre_and_post_norm_blocks_are_their_equations(small):
    x = torch.randn(2, 5, 32)
    pre = TransformerBlock(small)
    y = x + pre.attn(pre.ln1(x))
    torch.testing.assert_close(pre(x), y + pre.ffn(pre.ln2(y)))
    post = TransformerBlock(dataclasses.replace(small, norm_position="post"))
    y = post.ln1(x + post.attn(x))
    torch.testing.assert_close(post(x), post.ln2(y + post.ffn(y)))


@pytest.mark.parametrize("position", ["rope", "learned", "none"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_changing_one_document_leaves_the_others_as_they_were(small, backend, position):
    torch.manual_seed(0)
    model = TransformerLM(dataclasses.replace(small, position=position), vocab_size=61, attention_backend=backend)
    token_ids = torch.randint(61, (2, 16))
    changed = token_ids.clone()
    changed[:, 5:11] = (changed[:, 5:11] + 1) % 61
    starts = torch.tensor([0] * 5 + [5] * 6 + [11] * 5).expand(2, 16)
    with torch.no_grad():
        before, after = (model(ids, document_starts=starts) for ids in (token_ids, changed))
        unmasked = [model(ids) for ids in (token_ids, changed)]
    assert before[:, :5].equal(after[:, :5]) and before[:, 11:].equal(after[:, 11:])
    assert not torch.isclose(before[:, 5:11], after[:, 5:11]).all(-1).any()
    assert not torch.isclose(unmasked[0][:, 11:], unmasked[1][:, 11:]).all(-1).any()  # they did see it


@pytest.mark.parametrize("norm", ["rmsnorm", "none"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_checkpointed_activations_change_no_bit(small, backend, norm):
    config, starts = dataclasses.replace(small, norm=norm), torch.tensor([[0] * 9 + [9] * 7])
    token_ids = torch.randint(61, (1, 16))
    results, kept = [], []
    for checkpoint_activations in (False, True):
        torch.manual_seed(0)
        model = TransformerLM(config, 61, backend, checkpoint_activations)
        count = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(token_ids, document_starts=starts).square().mean()
        kept.append(count)
        loss.backward()
        results.append({"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters()})
    assert all(value.equal(results[1][name]) for name, value in results[0].items())
    assert kept[1] < kept[0] / 2


def test_the_head_reads_the_hidden_states(small):
    model = TransformerLM(small, vocab_size=61)
    token_ids, starts = torch.randint(61, (2, 16)), torch.tensor([[0] * 9 + [9] * 7]).expand(2, 16)
    hidden = model.hidden(token_ids, torch.arange(16), starts)
    assert hidden.shape == (2, 16, 32)
    torch.testing.assert_close(model(token_ids, torch.arange(16), starts), hidden @ model.lm_head.weight.T)


@pytest.mark.parametrize("position", ["rope", "none"])
def test_with_qk_norm_the_sizes_of_queries_and_keys_do_not_count(small, position):
    token_ids = torch.randint(61, (2, 16))
    for qk_norm in (True, False):
        torch.manual_seed(0)
        model = TransformerLM(dataclasses.replace(small, qk_norm=qk_norm, position=position), vocab_size=61)
        logits = []
        for scale in (10, 100):  # large, so that the norm's epsilon does not count
            for layer in model.layers:
                layer.attn.q_proj.weight.data.mul_(scale)
                layer.attn.k_proj.weight.data.mul_(scale)
            logits.append(model(token_ids))
        assert torch.allclose(*logits, rtol=1e-4, atol=1e-5) == qk_norm


def test_a_model_with_qk_norm_is_causal_and_its_weights_all_learn(small):
    torch.manual_seed(0)
    model = TransformerLM(dataclasses.replace(small, qk_norm=True, num_kv_heads=2), vocab_size=61)
    token_ids = torch.randint(61, (2, 12))
    changed = token_ids.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 61
    logits = model(token_ids)
    torch.testing.assert_close(model(changed)[:, :8], logits[:, :8])
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_qk_norm_adds_two_gains_a_block(small):
    switched = TransformerLM(dataclasses.replace(small, qk_norm=True, num_kv_heads=2), vocab_size=61)
    sizes = {name: p.numel() for name, p in switched.named_parameters()}
    plain = {name for name, _ in TransformerLM(small, vocab_size=61).named_parameters()}
    added = {f"layers.{i}.attn.{part}.weight": 8 for i in range(2) for part in ("q_norm", "k_norm")}
    assert {name: sizes[name] for name in sizes.keys() - plain} == added and plain <= sizes.keys()


def test_parameters_have_the_names_of_the_design(small):
    names = {name for name, _ in TransformerLM(small, vocab_size=61).named_parameters()}
    block = [
        "ln1",
        "attn.q_proj",
        "attn.k_proj",
        "attn.v_proj",
        "attn.output_proj",
        "ln2",
        "ffn.w1",
        "ffn.w2",
        "ffn.w3",
    ]
    expected = {f"layers.{i}.{part}.weight" for i in range(2) for part in block}
    assert names == expected | {"token_embeddings.weight", "ln_final.weight", "lm_head.weight"}
