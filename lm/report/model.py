"""The section on the model: its layers, their parameters, and what a training step costs.

It needs only params.yaml, so it can be read before anything is trained. Once there is a tokenizer, its vocabulary
counts, which is smaller than the one asked for if the text had too few pairs to merge.

Shapes: T sequence; as in the code, but with the numbers of the configuration, and without the dimension of the batch.
"""

from collections.abc import Callable, Mapping

from matplotlib.axes import Axes

from lm.errors import UserError
from lm.model.attention import MultiHeadSelfAttention
from lm.model.cache import CANON_WIDTH
from lm.model.canon import CanonLayer
from lm.model.config import ModelConfig
from lm.model.cost import parameters, training_flops_per_token
from lm.model.feed_forward import FEED_FORWARDS
from lm.model.linear import Linear
from lm.model.norms import NORMS, RMSNorm
from lm.planning.memory_estimate import process_bytes
from lm.report.blocks import Block, Diagram, Facts, Layer, Plot, Section
from lm.report.curve import plot
from lm.report.numbers import count, short, size
from lm.report.run import Run
from lm.training.config import RunConfig

_COMMAND = "lm plan"
_PRODUCTS = {"swiglu": "silu(W1 x) · W3 x", "silu": "silu(W1 x)", "relu_squared": "relu(W1 x)²"}
_PHASES = {
    "loss": "loss, temporarily",
    "backward": "backward pass, temporarily",
    "step": "optimizer's step, temporarily",
}


def layers(config: ModelConfig, vocab_size: int) -> list[Layer]:
    """The layers of a model from its input to its output. Of the blocks, which are all alike, there is one.

    A layer's number of parameters includes those of the layers within it.
    """
    width = f"(T, {config.d_model})"
    count_by_part = parameters(config, vocab_size)
    block = _block(config)
    model = [
        Layer(name="token ids", shape="(T,)"),
        Layer(name="token embeddings", shape=width, parameters=count_by_part["token_embeddings"]),
    ]
    if config.position == "learned":
        number = count_by_part["position_embeddings"]
        model.append(Layer(name="+ position embeddings", shape=width, parameters=number))
    model.append(
        Layer(
            name=f"each of the {count(config.num_layers)} blocks" if config.num_layers > 1 else "the only block",
            shape=width,
            parameters=sum(layer.parameters for layer in block),
            layers=block,
        )
    )
    if config.norm_position == "pre":
        model += _norm(config, "ln_final")
    tied = ", the same matrix as the token embeddings" if config.tie_embeddings else ""
    head = Layer(name=f"head (lm_head){tied}", shape=f"(T, {vocab_size})", parameters=count_by_part["lm_head"])
    return [*model, head]


def _block(config: ModelConfig) -> list[Layer]:
    return [
        *_residual(config, "ln1", "canon_a", "attn", _attention(config)),
        *_residual(config, "ln2", "canon_c", "ffn", _feed_forward(config)),
    ]


def _residual(config: ModelConfig, norm: str, canon: str, name: str, layer: Layer) -> list[Layer]:
    """A sublayer, what is in front of it, and the residual connection around both; in post-norm, a norm follows."""
    is_pre = config.norm_position == "pre"
    norms = _norm(config, norm)
    canons = []
    if config.canon:
        number = CanonLayer.num_parameters(config.d_model)
        text = f"Canon layer ({canon}), mixes in {CANON_WIDTH - 1} earlier positions"
        canons = [Layer(name=text, shape=layer.shape, parameters=number)]
    inner = [*(norms if is_pre else []), *canons, layer]
    output = "x"
    if is_pre and norms:
        output = f"{norm}({output})"
    if canons:
        output = f"{canon}({output})"
    branch = Layer(
        name=f"x + {name}({output})",
        shape=layer.shape,
        parameters=sum(part.parameters for part in inner),
        layers=inner,
        residual=True,
    )
    return [branch] if is_pre else [branch, *norms]


def _norm(config: ModelConfig, name: str) -> list[Layer]:
    """A norm, or nothing in a model without norms."""
    if config.norm == "none":
        return []
    norm = NORMS[config.norm]
    number = norm.num_parameters(config.d_model)
    return [Layer(name=f"{norm.__name__} ({name})", shape=f"(T, {config.d_model})", parameters=number)]


def _attention(config: ModelConfig) -> Layer:
    d_model, d_head, num_heads, num_kv_heads = config.d_model, config.d_head, config.num_heads, config.num_kv_heads
    heads = f"({num_heads}, T, {d_head})"
    projected = 2 * Linear.num_parameters(d_model, num_kv_heads * d_head) + Linear.num_parameters(d_model, d_model)
    steps = [
        Layer(
            name="queries, keys and values (q_proj, k_proj, v_proj)",
            shape=f"{heads}, 2 × ({num_kv_heads}, T, {d_head})",
            parameters=projected,
        )
    ]
    if config.qk_norm:
        number = 2 * RMSNorm.num_parameters(d_head)
        steps.append(Layer(name="RMSNorm of queries and keys (q_norm, k_norm)", parameters=number))
    if config.position == "rope":
        steps.append(Layer(name="rotation of queries and keys by their positions (RoPE)"))
    steps += [
        Layer(name=f"softmax(Q Kᵀ / √{d_head}) V, causal", shape=heads),
        Layer(
            name="output (output_proj)",
            shape=f"(T, {d_model})",
            parameters=Linear.num_parameters(d_model, d_model),
        ),
    ]
    text = f"{num_heads} heads of width {d_head}" if num_heads > 1 else f"1 head of width {d_head}"
    if (group := num_heads // num_kv_heads) > 1:
        text += f", keys and values shared by groups of {group}"
    projections = MultiHeadSelfAttention.num_parameters(d_model, num_heads, num_kv_heads)
    return Layer(
        name=f"attention (attn), {text}",
        shape=f"(T, {d_model})",
        parameters=projections + (2 * RMSNorm.num_parameters(d_head) if config.qk_norm else 0),
        layers=steps,
    )


def _feed_forward(config: ModelConfig) -> Layer:
    d_model, layer = config.d_model, FEED_FORWARDS[config.ffn]
    width = layer.hidden_width(config.d_ff)
    hidden = layer.num_input_products * Linear.num_parameters(d_model, width)
    return Layer(
        name=f"feed-forward layer (ffn), {layer.__name__}",
        shape=f"(T, {d_model})",
        parameters=layer.num_parameters(d_model, config.d_ff),
        layers=[
            Layer(name=f"h = {_PRODUCTS[config.ffn]}", shape=f"(T, {width})", parameters=hidden),
            Layer(name="W2 h", shape=f"(T, {d_model})", parameters=Linear.num_parameters(width, d_model)),
        ],
    )


def _vocab_size(run: Run) -> int:
    if (run.folder / "data" / "tokenizer").is_dir():
        return run.tokenizer.vocab_size
    return run.params.tokenizer.vocab_size


def _parameters(run: Run) -> dict[str, int]:
    """Number of parameters by component, without components that have none."""
    parts = parameters(run.params.model, _vocab_size(run))
    return {name: number for name, number in parts.items() if number}


def _in_blocks(parts: Mapping[str, int]) -> int:
    """Number of parameters without embeddings and head."""
    outside = ("token_embeddings", "position_embeddings", "lm_head")
    return sum(number for name, number in parts.items() if name not in outside)


def _memory(run: Run) -> dict[str, int]:
    """Bytes of memory of a process by kind."""
    params, runtime = run.params, run.params.runtime
    if params.train.batch_size % runtime.num_processes:
        raise UserError(
            f"train.batch_size: expected a multiple of runtime.num_processes = {runtime.num_processes}, "
            f"got {params.train.batch_size}; lm plan names the nearest"
        )
    training = RunConfig(model=params.model, optim=params.optim, train=params.train)
    kinds = process_bytes(training, _vocab_size(run), runtime, _device(run), runtime.num_processes)
    return {name: number for name, number in kinds.items() if number}


def _device(run: Run) -> str:
    """The device that params.yaml names. `auto` is the CPU, since the report does not depend on the machine."""
    return "cpu" if run.params.runtime.device == "auto" else run.params.runtime.device


def _finding(run: Run) -> str:
    parts = _parameters(run)
    total = sum(parts.values())
    outside = total - _in_blocks(parts)
    where = (
        "the embeddings, which are also the head" if run.params.model.tie_embeddings else "the embeddings and the head"
    )
    return f"The model has {_in_words(total)} parameters, {outside / total:.0%} of them in {where}."


def _in_words(number: int) -> str:
    """A number of parameters as people say it.

    >>> _in_words(920192), _in_words(124439808), _in_words(20312)
    ('0.92 million', '124 million', '20,312')
    """
    if number < 1e5:
        return count(number)
    unit, name = (1e6, "million") if number < 1e9 else (1e9, "billion")
    return f"{number / unit:.3g} {name}"


def _diagram(run: Run) -> list[Block]:
    config = run.params.model
    note = (
        f"T is the number of tokens, at most {count(config.context_length)} (context_length). x is the residual "
        "stream, to which attention and the feed-forward layer add their outputs."
    )
    if config.position == "none":
        note += " Nothing tells the layers at which position a token is, except that attention is causal."
    return [Diagram(title="The layers", layers=layers(config, _vocab_size(run)), note=note, command=_COMMAND)]


def _facts(run: Run) -> list[Block]:
    params, vocab_size = run.params, _vocab_size(run)
    parts = _parameters(run)
    training = RunConfig(model=params.model, optim=params.optim, train=params.train)
    flops = training_flops_per_token(params.model, vocab_size)
    tokens = training.num_tokens(params.train.max_steps)
    rows = [
        ("parameters", count(sum(parts.values()))),
        ("without embeddings and head", count(_in_blocks(parts))),
        ("training, per token", short(flops, "FLOPs")),
        (f"training, {short(tokens)} tokens", short(flops * tokens, "FLOPs")),
    ]
    return [
        Facts(
            rows=rows,
            note=f"FLOPs are those of matrix products in windows of {count(params.model.context_length)} tokens; "
            "the backward pass takes twice as many as the forward pass.",
            command=_COMMAND,
        )
    ]


def _parameters_by_part(run: Run) -> list[Block]:
    parts = {name.replace("_", " "): number for name, number in _parameters(run).items()}
    return [_bars("parameters-by-part", "Parameters by part", parts, count, "C0", "")]


def _memory_by_kind(run: Run) -> list[Block]:
    kinds = {_PHASES.get(name, name.replace("_", " ")): number for name, number in _memory(run).items()}
    runtime = run.params.runtime
    share = run.params.train.batch_size // runtime.num_processes
    micro_batch = min(runtime.micro_batch_size or share, share)
    at_peak = f"at the peak of a training step with micro batches of {count(micro_batch)} sequences"
    if _device(run) == "cpu":
        note = f"{size(sum(kinds.values()))} on the CPU {at_peak}, while a checkpoint is written"
    else:
        on_gpu = sum(kinds.values()) - kinds["checkpoint"]
        note = f"{size(on_gpu)} on the GPU {at_peak}; the copy for a checkpoint is in the CPU's memory"
    note += f"; in each of {runtime.num_processes} processes." if runtime.num_processes > 1 else "."
    return [_bars("memory-by-kind", "Memory by kind", kinds, size, "C2", note)]


def _bars(
    name: str, title: str, values: Mapping[str, int], text: Callable[[float], str], color: str, note: str
) -> Plot:
    """A bar per value, labeled with the value; nothing else says how long it is."""

    def draw(axes: Axes) -> None:
        bars = axes.barh(list(values), list(values.values()), color=color, height=0.65)
        axes.bar_label(bars, [text(value) for value in values.values()], padding=4)
        axes.invert_yaxis()
        axes.margins(x=0.25)
        axes.xaxis.set_visible(False)
        axes.tick_params(left=False)
        axes.spines[:].set_visible(False)

    described = ", ".join(f"{part} {text(value)}" for part, value in values.items())
    return Plot(name=name, title=title, figure=plot(draw), alt=f"{title}: {described}", note=note, command=_COMMAND)


MODEL = Section("model", "Model", _finding, [_diagram, _facts, _parameters_by_part, _memory_by_kind])
