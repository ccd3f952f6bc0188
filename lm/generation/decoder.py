"""A model that continues texts: it keeps the keys and values of all earlier tokens, and reads only new ones.

    decoder = Decoder(model, num_rows=2)
    logits = decoder.prefill([0, 1], [[5, 17, 3], [8]])  # two prompts of different lengths
    logits = decoder.decode([4, 9])  # one more token in each row

The decoder only manages rows and positions. The model is the same as in training, and reads with a cache (see
lm/model/cache.py).

Shapes: B rows, T sequence, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lm.errors import UserError
from lm.memory import available_memory
from lm.model.cache import KeyValueCache
from lm.model.transformer import TransformerLM


class Decoder:
    """Computes the logits of the next token of up to `num_rows` texts, equal to those of `model` up to rounding.

    `lengths` holds the number of tokens in each row. `prefill` fills rows, at any time and in any order, and `decode`
    appends one token per row.

    Args:
        context_length: the number of tokens that a row can hold, at most and by default that of the model.
        compiled: whether to compile the step with torch.compile, always for all rows and columns. On CUDA, it then runs
            as a CUDA graph.

    Raises:
        UserError: the cache does not fit into the memory that is free.
    """

    def __init__(
        self, model: TransformerLM, num_rows: int, context_length: int | None = None, compiled: bool = False
    ) -> None:
        self.model = model
        self.lengths = [0] * num_rows
        self.context_length = min(context_length or model.config.context_length, model.config.context_length)
        check_memory(model, num_rows, self.context_length)
        weight = model.token_embeddings.weight
        self.cache = KeyValueCache(model.config, num_rows, self.context_length, weight.dtype, weight.device)
        self._compiled_step: Callable[[Tensor, Tensor, int], Tensor] | None = None
        if compiled:
            for tensor in (self.cache.keys, self.cache.values, self.cache.canon_inputs):
                torch._dynamo.mark_static_address(tensor)  # otherwise the graph would not write into it
            self._compiled_step = torch.compile(self._step, mode="reduce-overhead", fullgraph=True)

    @torch.no_grad()
    def prefill(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read a prompt of 1 to `context_length` tokens into each of `rows`, replacing what they held.

        Returns:
            The logits (len(rows), V) of the token that follows each prompt.
        """
        lengths = [len(prompt) for prompt in prompts]
        device = self.cache.keys.device
        token_ids = torch.zeros(len(rows), max(lengths), dtype=torch.long)
        for row, prompt in zip(token_ids, prompts):
            row[: len(prompt)] = torch.tensor(prompt)
        view = self.cache.prompts(torch.tensor(rows, device=device), torch.tensor(lengths, device=device))
        hidden = self.model.hidden(token_ids.to(device), cache=view)  # (B, T, D)
        for row, length in zip(rows, lengths):
            self.lengths[row] = length
        return self.model.lm_head(hidden[range(len(rows)), [length - 1 for length in lengths]])

    @torch.no_grad()
    def decode(self, token_ids: Sequence[int | None]) -> Tensor:
        """Append a token to each of the first rows; rows left out, by None or at the end, become empty.

        Returns:
            The logits (len(token_ids), V) of the tokens that follow; those of an empty row have no meaning.

        Raises:
            IndexError: a row already holds `context_length` tokens.
        """
        self.lengths[:] = extended(self.lengths, token_ids, self.context_length)
        num_rows, num_columns = len(token_ids), max(1, *self.lengths)
        if self._compiled_step:  # compiled for one size only
            num_rows, num_columns = len(self.lengths), self.context_length
        ids = torch.zeros(num_rows, dtype=torch.long)
        ids[: len(token_ids)] = torch.tensor([token_id or 0 for token_id in token_ids])
        positions = torch.tensor(self.lengths[:num_rows]).sub(1).clamp(min=0)
        device = self.cache.keys.device
        step = self._compiled_step or self._step
        logits = step(ids.to(device), positions.to(device), num_columns)
        return logits[: len(token_ids)].clone()  # a CUDA graph reuses the memory of its output

    def _step(self, token_ids: Tensor, positions: Tensor, num_columns: int) -> Tensor:
        """Logits (B, V) after token (B,) at position (B,) of the first B rows, of which the first columns are read."""
        hidden = self.model.hidden(token_ids[:, None], cache=self.cache.next_tokens(positions, num_columns))
        return self.model.lm_head(hidden[:, 0])


def check_memory(model: TransformerLM, num_rows: int, context_length: int) -> None:
    """Raise UserError if the cache does not fit, before the system has to kill the process."""
    config, weight = model.config, model.token_embeddings.weight
    dtype, device = weight.dtype, weight.device
    per_token = num_rows * KeyValueCache.bytes_per_token(config, dtype)
    fixed = num_rows * KeyValueCache.bytes_per_row(config, dtype)
    needed = fixed + context_length * per_token
    (place, free), *_ = available_memory(device, 1).items()
    if needed > free:
        texts = f"{num_rows} texts" if num_rows > 1 else "a text"
        raise UserError(
            f"the key/value cache for {texts} of {context_length:,} tokens needs {needed:,} bytes, but {free:,} bytes "
            f"of {place} memory are free; use a context of at most {max(0, free - fixed) // per_token:,} tokens, or "
            "fewer texts at once"
        )


def extended(lengths: Sequence[int], token_ids: Sequence[int | None], context_length: int) -> list[int]:
    """The lengths of all rows after a token was appended to some; the other rows become empty.

    Raises:
        IndexError: a row is full.
    """
    new = [0] * len(lengths)
    for row, token_id in enumerate(token_ids):
        if token_id is not None:
            new[row] = lengths[row] + 1
    if max(new) > context_length:
        raise IndexError(f"row {new.index(max(new))} is full: it holds context_length = {context_length} tokens")
    return new
