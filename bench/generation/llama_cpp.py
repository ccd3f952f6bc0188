"""llama.cpp as a system that generates, through the package llama-cpp-python, on our own GGUF export.

The model is exported with the type of weights that has the precision of the measurement, and with a vocabulary that
only has the right size. The key/value cache has the type that llama.cpp uses by default, float16, except in float32.
"""

import ctypes
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench.common.models import Lm
from lm.corpus.config import END_OF_TEXT
from lm.export.gguf import WeightType, export_gguf
from lm.model.config import ModelConfig
from lm.model.files import save_model
from lm.tokenizer.encoding.vocab import build_vocab
from lm.tokenizer.tokenizer import Tokenizer

WEIGHT_TYPES: dict[str, WeightType] = {"float32": "f32", "bfloat16": "bf16", "int8": "q8_0"}


class LlamaCpp:
    """The `generate` of `bench.generation.systems`, for always as many prompts as in the first call.

    Tokens are drawn by llama.cpp's own greedy sampler.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, dtype: str, device: torch.device) -> None:
        import llama_cpp

        if device.type != "cpu":
            raise ValueError("llama.cpp is measured on the CPU")
        self._api = llama_cpp
        self._log = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p())
        self._config, self._is_float32 = config, dtype == "float32"
        with TemporaryDirectory() as folder:
            path = Path(folder)
            tokenizer = _tokenizer(vocab_size)
            tokenizer.save(path / "tokenizer")
            save_model(path / "model", Lm(config, vocab_size).model, tokenizer.hash)
            export_gguf(path / "model", path / "tokenizer", path / "model.gguf", WEIGHT_TYPES[dtype])
            settings = llama_cpp.llama_model_default_params()
            settings.use_mmap = False  # the file is deleted
            self._model = llama_cpp.llama_model_load_from_file(str(path / "model.gguf").encode(), settings)
        self._sampler = llama_cpp.llama_sampler_init_greedy()
        self._context: Any = None

    def __call__(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        api, num_rows = self._api, len(prompts)
        if self._context is None:
            self._context = self._make_context(num_rows)
        api.llama_memory_clear(api.llama_get_memory(self._context), False)
        texts: list[list[int]] = [[] for _ in prompts]
        new, positions = prompts, [0] * num_rows
        for _ in range(new_tokens):
            last = self._decode(new, positions)
            positions = [position + len(tokens) for position, tokens in zip(positions, new)]
            new = [[api.llama_sampler_sample(self._sampler, self._context, place)] for place in last]
            for text, tokens in zip(texts, new):
                text += tokens
        return texts

    def _make_context(self, num_rows: int) -> Any:
        api = self._api
        settings = api.llama_context_default_params()
        settings.n_ctx = num_rows * self._config.context_length
        settings.n_seq_max = num_rows
        settings.n_batch = num_rows * self._config.context_length
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        if self._is_float32:  # FlashAttention would round to float16
            settings.type_k = settings.type_v = api.GGML_TYPE_F32
            settings.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._batch = api.llama_batch_init(settings.n_batch, 0, 1)
        return api.llama_init_from_model(self._model, settings)

    def _decode(self, tokens: list[list[int]], positions: list[int]) -> list[int]:
        """Read more tokens of every text; return the places of the last ones in the batch."""
        batch, last, count = self._batch, [], 0
        for row, (ids, position) in enumerate(zip(tokens, positions)):
            for offset, token_id in enumerate(ids):
                batch.token[count] = token_id
                batch.pos[count] = position + offset
                batch.n_seq_id[count] = 1
                batch.seq_id[count][0] = row
                batch.logits[count] = offset == len(ids) - 1
                count += 1
            last.append(count - 1)
        batch.n_tokens = count
        if self._api.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")
        return last


def _tokenizer(vocab_size: int) -> Tokenizer:
    """A tokenizer with a vocabulary of this size: the bytes, pairs of bytes, and the end of text."""
    pairs = [(bytes([first]), bytes([second])) for first in range(256) for second in range(256)]
    merges = pairs[: vocab_size - 257]
    return Tokenizer(build_vocab(merges, [END_OF_TEXT]), merges, [END_OF_TEXT])
