"""A model that goes on where it stopped: the keys and values of all tokens so far are kept, and only new ones are read.

    decoder = Decoder(model, num_rows=2)
    logits = decoder.prefill([0, 1], [[5, 17, 3], [8]])  # two prompts of different lengths
    logits = decoder.decode([4, 9])  # one more token in each row

The cache has room for `num_rows` texts of `context_length` tokens from the start, and nothing is allocated later. Every
row has positions of its own: token t of a row stands in column t and has position t, whatever the other rows hold. So
prompts are padded on the right; what stands beyond the end of a row is never seen, and overwritten by what comes.

Shapes: B rows, T sequence, S sequence of the keys, D d_model, H heads, G key/value heads, K d_head, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lm.model.attention import MultiHeadSelfAttention, causal_attention, scaled_dot_product_attention
from lm.model.transformer import TransformerBlock, TransformerLM

Attend = Callable[[MultiHeadSelfAttention, Tensor], Tensor]


class Decoder:
    """Logits of the next token of up to `num_rows` texts, equal to those of `model` up to rounding.

    `keys` and `values` (layers, B, G, S, K) are the cache, `lengths` the tokens that each row holds. Rows are filled by
    `prefill`, at any time and in any order, and grow by `decode`, which raises an IndexError beyond `context_length`.

    With `compiled` PyTorch compiles the step, for all rows and columns at once: on CUDA into one graph of kernels.
    """

    def __init__(self, model: TransformerLM, num_rows: int, compiled: bool = False) -> None:
        config, weight = model.config, model.token_embeddings.weight
        self.model = model
        self.lengths = [0] * num_rows
        shape = (config.num_layers, num_rows, config.num_kv_heads, config.context_length, config.d_head)
        # Zeros: a column that is not seen has the weight 0 in a sum, which would not hide a NaN.
        self.keys = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.values = torch.zeros_like(self.keys)
        self._is_compiled = compiled
        if compiled:
            for cache in (self.keys, self.values):
                torch._dynamo.mark_static_address(cache)  # else a graph would not write into it
            self._step = torch.compile(self._step, mode="reduce-overhead", fullgraph=True)

    @torch.no_grad()
    def prefill(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read a prompt of 1 to `context_length` tokens into each of `rows`, in place of what they held.

        Returns:
            The logits (len(rows), V) of the token that follows each prompt.
        """
        lengths = [len(prompt) for prompt in prompts]
        device = self.keys.device
        token_ids = torch.zeros(len(rows), max(lengths), dtype=torch.long)
        for row, prompt in zip(token_ids, prompts):
            row[: len(prompt)] = torch.tensor(prompt)
        positions = torch.arange(max(lengths), device=device)
        index = torch.tensor(rows, device=device)
        x = self._embed(token_ids.to(device), positions)  # (B, T, D)
        for layer, keys, values in zip(self.model.layers, self.keys, self.values):

            def attend(attn: MultiHeadSelfAttention, x: Tensor) -> Tensor:
                q, k, v = _project(attn, x, positions)  # (B, H, T, K), (B, G, T, K)
                keys[index, :, : len(positions)], values[index, :, : len(positions)] = k, v
                group = attn.num_heads // attn.num_kv_heads
                k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
                return causal_attention(q, k, v, attn.backend)

            x = _block(layer, x, attend)
        for row, length in zip(rows, lengths):
            self.lengths[row] = length
        return self._head(x[range(len(rows)), [length - 1 for length in lengths]])

    @torch.no_grad()
    def decode(self, token_ids: Sequence[int | None]) -> Tensor:
        """Append a token to each of the first rows; those left out, by None or at the end, are empty then.

        Returns:
            The logits (len(token_ids), V) of the tokens that follow; those of a row left out mean nothing.
        """
        extend(self.lengths, token_ids, self.model.config.context_length)
        num_rows, num_columns = len(token_ids), max(1, *self.lengths)
        if self._is_compiled:  # what is compiled has one size
            num_rows, num_columns = len(self.lengths), self.model.config.context_length
        ids = torch.zeros(num_rows, dtype=torch.long)
        ids[: len(token_ids)] = torch.tensor([token_id or 0 for token_id in token_ids])
        positions = torch.tensor(self.lengths[:num_rows]).sub(1).clamp(min=0)
        device = self.keys.device
        logits = self._step(ids.to(device), positions.to(device), num_columns)
        return logits[: len(token_ids)].clone()  # a graph writes into the same memory again

    def _step(self, token_ids: Tensor, positions: Tensor, num_columns: int) -> Tensor:
        """Logits (B, V) for token (B,) at position (B,) of the first B rows, of which the first columns are read."""
        rows = torch.arange(len(token_ids), device=positions.device)
        mask = torch.arange(num_columns, device=positions.device) <= positions[:, None]
        mask = mask[:, None, None]  # (B, 1, 1, S)
        x = self._embed(token_ids[:, None], positions[:, None])
        for layer, keys, values in zip(self.model.layers, self.keys, self.values):

            def attend(attn: MultiHeadSelfAttention, x: Tensor) -> Tensor:
                q, k, v = _project(attn, x, positions[:, None, None])  # T is 1
                keys[rows, :, positions], values[rows, :, positions] = k[:, :, 0], v[:, :, 0]
                k, v = keys[: len(rows), :, :num_columns], values[: len(rows), :, :num_columns]
                # The heads that share keys and values are queries side by side: nothing has to be repeated.
                q = q.reshape(len(rows), attn.num_kv_heads, -1, attn.d_head)
                # The equation: for one position, PyTorch's kernel takes up to four times as long on a CPU.
                heads = scaled_dot_product_attention(q, k, v, mask)
                return heads.reshape(len(rows), attn.num_heads, 1, attn.d_head)

            x = _block(layer, x, attend)
        return self._head(x[:, 0])

    def _embed(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        x = self.model.token_embeddings(token_ids)
        if self.model.config.position == "learned":
            x = x + self.model.position_embeddings.weight[positions]
        return x

    def _head(self, x: Tensor) -> Tensor:
        return self.model.lm_head(self.model.ln_final(x))


def extend(lengths: list[int], token_ids: Sequence[int | None], context_length: int) -> None:
    """Count a token more in the rows that get one; the others hold none.

    Raises:
        IndexError: a row is full; nothing has changed then.
    """
    new = [0] * len(lengths)
    for row, token_id in enumerate(token_ids):
        if token_id is not None:
            new[row] = lengths[row] + 1
    if max(new) > context_length:
        raise IndexError(f"row {new.index(max(new))} is full: it holds context_length = {context_length} tokens")
    lengths[:] = new


def _block(layer: TransformerBlock, x: Tensor, attend: Attend) -> Tensor:
    """TransformerBlock.forward with attention of another kind, up to its output projection."""

    def attention(x: Tensor) -> Tensor:
        return layer.attn.output_proj(attend(layer.attn, x).transpose(1, 2).flatten(-2))

    if layer.norm_position == "pre":
        x = x + attention(layer.ln1(x))
        return x + layer.ffn(layer.ln2(x))
    x = layer.ln1(x + attention(x))
    return layer.ln2(x + layer.ffn(x))


def _project(attn: MultiHeadSelfAttention, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B, H, T, K), keys and values (B, G, T, K) of x (B, T, D)."""
    q = attn.q_norm(attn.q_proj(x).unflatten(-1, (attn.num_heads, attn.d_head)).transpose(1, 2))
    k = attn.k_norm(attn.k_proj(x).unflatten(-1, (attn.num_kv_heads, attn.d_head)).transpose(1, 2))
    v = attn.v_proj(x).unflatten(-1, (attn.num_kv_heads, attn.d_head)).transpose(1, 2)
    if attn.rope is not None:
        q, k = attn.rope(q, positions), attn.rope(k, positions)
    return q, k, v
