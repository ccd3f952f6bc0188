"""The key/value cache: what the layers have computed for earlier tokens, so that only new tokens are read.

The cache has a row for each of `num_rows` texts and a column for each of `num_columns` tokens. Token t of a text is
in column t of its row and has position t, whatever the other rows hold. Texts of different lengths are therefore padded
on the right; columns beyond the end of a text are never attended to, and later tokens overwrite them. Canon layers see
only the last few tokens, so their inputs are kept for these.

Shapes: B rows of a batch, T sequence, S columns, D d_model, G key/value heads, K d_head, E = 3 the number of earlier
inputs that a Canon layer sees.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lm.model.config import ModelConfig

CANON_WIDTH = 4  # the number of positions that a Canon layer sees, its own included


class KeyValueCache:
    """Keys and values (layers, num_rows, G, num_columns, K), allocated once.

    `canon_inputs` (layers, 2, num_rows, E, D) holds the last inputs of the two Canon layers of each block, the newest
    one last; without Canon layers, it is (layers, 0, num_rows, E, D).

    A forward pass takes a view of it: `prompts` to read texts from their beginning, `next_tokens` to read one more
    token per row.
    """

    def __init__(
        self, config: ModelConfig, num_rows: int, num_columns: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.num_layers, num_rows, config.num_kv_heads, num_columns, config.d_head)
        # Zeros: a column that must not be seen gets the weight 0, and 0 times NaN would still be NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        places = 2 if config.canon else 0
        shape = (config.num_layers, places, num_rows, CANON_WIDTH - 1, config.d_model)
        self.canon_inputs = torch.zeros(shape, dtype=dtype, device=device)

    @staticmethod
    def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
        """The size of one column of one row."""
        return 2 * config.num_layers * config.num_kv_heads * config.d_head * dtype.itemsize

    @staticmethod
    def bytes_per_row(config: ModelConfig, dtype: torch.dtype) -> int:
        """The size of what a row holds beside its columns."""
        return 2 * config.num_layers * (CANON_WIDTH - 1) * config.d_model * dtype.itemsize if config.canon else 0

    def prompts(self, rows: Tensor, lengths: Tensor) -> "CacheView":
        """Return a view to read texts of `lengths` (B,) tokens, padded on the right, from position 0 into `rows` (B,).

        They overwrite what these rows held.
        """
        return CacheView(self, rows, lengths, None, None)

    def next_tokens(self, positions: Tensor, num_columns: int) -> "CacheView":
        """Return a view to read one token at `positions` (B,) into each of the first B rows.

        The tokens attend to the first `num_columns` columns, up to their own position.
        """
        columns = torch.arange(num_columns, device=positions.device)
        mask = columns <= positions[:, None]  # (B, S)
        rows = torch.arange(len(positions), device=positions.device)
        return CacheView(self, rows, torch.ones_like(positions), positions, mask[:, None, None])


@dataclass
class CacheView:
    """Where one forward pass stores its keys and values, and what it attends to."""

    cache: KeyValueCache
    rows: Tensor  # (B,)
    lengths: Tensor  # (B,), the number of tokens to read into each row
    positions: Tensor | None  # (B,), or None for texts read from position 0
    mask: Tensor | None  # (B, 1, 1, S), true where a column is seen

    @property
    def token_positions(self) -> Tensor | None:
        """(B, 1), or None for 0, 1, ..., T - 1."""
        return None if self.positions is None else self.positions[:, None]

    def layer(self, index: int) -> "LayerCache":
        return LayerCache(self.cache.keys[index], self.cache.values[index], self.cache.canon_inputs[index], self)


@dataclass
class LayerCache:
    """One layer of a view; `keys` and `values` are (num_rows, G, S, K), `canon_inputs` (2, num_rows, E, D)."""

    keys: Tensor
    values: Tensor
    canon_inputs: Tensor
    view: CacheView

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store the new keys and values (B, G, T, K).

        Returns:
            The keys and values to attend to, and the mask. The mask is None for texts read from their beginning, whose
            tokens attend only to each other, with the usual causal mask.
        """
        rows, positions, mask = self.view.rows, self.view.positions, self.view.mask
        if positions is None or mask is None:
            length = k.shape[-2]
            self.keys[rows, :, :length], self.values[rows, :, :length] = k, v
            return k, v, None
        self.keys[rows, :, positions], self.values[rows, :, positions] = k[:, :, 0], v[:, :, 0]
        num_columns = mask.shape[-1]
        return self.keys[: len(rows), :, :num_columns], self.values[: len(rows), :, :num_columns], mask

    def with_earlier_inputs(self, place: int, h: Tensor) -> Tensor:
        """Return the inputs of a Canon layer, `h` (B, T, D), behind the E inputs before them, (B, E + T, D).

        Those before the beginning of a text are 0. The last E inputs of each text are stored for its next token.
        """
        stored, rows, positions = self.canon_inputs[place], self.view.rows, self.view.positions
        num_earlier = stored.shape[-2]
        if positions is None:
            inputs = nn.functional.pad(h, (0, 0, num_earlier, 0))
        else:
            distances = torch.arange(num_earlier, 0, -1, device=h.device)
            # A row without a prompt still has the inputs of an older text.
            is_before_text = positions[:, None] < distances  # (B, E)
            inputs = torch.cat((stored[rows].masked_fill(is_before_text[..., None], 0), h), dim=1)
        # Input i of a text is in column E + i, so the last ones of a text of n tokens are in columns n to n + E - 1.
        last = self.view.lengths[:, None] + torch.arange(num_earlier, device=h.device)  # (B, E)
        stored[rows] = inputs[torch.arange(len(h), device=h.device)[:, None], last]
        return inputs
