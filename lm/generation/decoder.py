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

    `keys` (layers, B, G, K, S) and `values` (layers, B, G, S, K) are the cache, `lengths` the tokens that each row
    holds. Rows are filled by `prefill`, at any time and in any order, and grow by `decode`, which raises an IndexError
    beyond `context_length`.
    """

    def __init__(self, model: TransformerLM, num_rows: int) -> None:
        config, weight = model.config, model.token_embeddings.weight
        self.model = model
        self.lengths = [0] * num_rows
        shape = (config.num_layers, num_rows, config.num_kv_heads, config.context_length, config.d_head)
        # Zeros: a column that is not seen has the weight 0 in a sum, which would not hide a NaN.
        self.values = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        # Positions side by side: the product with a query then takes half the time on a CPU.
        self.keys = torch.zeros_like(self.values.transpose(-1, -2), memory_format=torch.contiguous_format)

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
                keys[index, :, :, : len(positions)] = k.transpose(-1, -2)
                values[index, :, : len(positions)] = v
                group = attn.num_heads // attn.num_kv_heads
                k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
                return causal_attention(q, k, v, attn.backend)

            x = _block(layer, x, attend)
        for row, length in zip(rows, lengths):
            self.lengths[row] = length
        return self._head(x[range(len(rows)), [length - 1 for length in lengths]])

    @torch.no_grad()
    def decode(self, token_ids: Sequence[int | None]) -> Tensor:
        """Append a token to every row; None leaves a row out, which then is empty.

        Returns:
            The logits (B, V) of the token that follows; those of a row left out mean nothing.
        """
        for row, token_id in enumerate(token_ids):
            if token_id is None:
                self.lengths[row] = 0
        seen = max(self.lengths) + 1
        if seen > self.model.config.context_length:
            raise IndexError(f"row {self.lengths.index(seen - 1)} is full: it holds context_length = {seen - 1} tokens")
        device = self.keys.device
        positions = torch.tensor(self.lengths, device=device)  # (B,)
        # With rows of one length there is nothing to hide.
        mask = None if min(self.lengths) + 1 == seen else torch.arange(seen, device=device) <= positions[:, None]
        mask = None if mask is None else mask[:, None, None]  # (B, 1, 1, S)
        index = torch.arange(len(positions), device=device)
        x = self._embed(torch.tensor([[token_id or 0] for token_id in token_ids], device=device), positions[:, None])
        for layer, keys, values in zip(self.model.layers, self.keys, self.values):

            def attend(attn: MultiHeadSelfAttention, x: Tensor) -> Tensor:
                q, k, v = _project(attn, x, positions[:, None, None])  # T is 1
                if mask is None:  # one column for all
                    keys[..., seen - 1], values[:, :, seen - 1] = k[:, :, 0], v[:, :, 0]
                else:
                    keys[index, :, :, positions], values[index, :, positions] = k[:, :, 0], v[:, :, 0]
                # The heads that share keys and values are queries side by side: nothing has to be repeated.
                q = q.reshape(len(index), attn.num_kv_heads, -1, attn.d_head)
                # The equation: for one position, PyTorch's kernel takes up to four times as long on a CPU.
                heads = scaled_dot_product_attention(q, keys[..., :seen].transpose(-1, -2), values[:, :, :seen], mask)
                return heads.reshape(len(index), attn.num_heads, 1, attn.d_head)

            x = _block(layer, x, attend)
        for row, token_id in enumerate(token_ids):
            self.lengths[row] += token_id is not None
        return self._head(x[:, 0])

    def _embed(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        x = self.model.token_embeddings(token_ids)
        if self.model.config.position == "learned":
            x = x + self.model.position_embeddings.weight[positions]
        return x

    def _head(self, x: Tensor) -> Tensor:
        return self.model.lm_head(self.model.ln_final(x))


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
