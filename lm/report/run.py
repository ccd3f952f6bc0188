"""The files of one run of the pipeline, read on demand."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lm import config
from lm.corpus.config import END_OF_TEXT
from lm.evaluation.documents import split_documents
from lm.evaluation.looking_back import LookingBack, look_back
from lm.generation.text import Sample
from lm.model.files import load_model
from lm.model.transformer import TransformerLM
from lm.report.curve import read_curve
from lm.schema import read_json
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens.files import open_tokens
from lm.training.history import History

METRICS = {  # the file of each stage whose metrics the report shows
    "download": "download.json",
    "encode_memmap": "tokens.json",
    "train": "train.json",
    "evaluate": "evaluation.json",
}


@dataclass(frozen=True)
class Run:
    """A finished or unfinished run of the pipeline; every attribute raises UserError if its file is missing.

    Attributes:
        folder: The project's folder, with params.yaml, metrics and data.
        timing: Whether to show times and rates, which differ from one run to the next.
        gpt2: The folder of GPT-2's tokenizer to compare with, or None.
    """

    folder: Path
    timing: bool = False
    gpt2: Path | None = None

    @cached_property
    def params(self) -> config.Params:
        return config.load(self.folder / "params.yaml")

    def metrics(self, stage: str) -> dict[str, float]:
        """The metrics that a stage wrote."""
        path = self.folder / "metrics" / METRICS[stage]
        return read_json(path, dict[str, float], f"make it with: dvc repro {stage}")

    @cached_property
    def curve(self) -> History:
        return read_curve(self.folder / "metrics" / "train.csv")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder / "data" / "tokenizer")

    @cached_property
    def model(self) -> TransformerLM:
        return load_model(self.folder / "data" / "model", self.tokenizer.hash).eval()

    @property
    def has_samples(self) -> bool:
        return self._samples_file.is_file()

    @cached_property
    def samples(self) -> list[Sample]:
        return read_json(self._samples_file, list[Sample], "make it with: dvc repro sample")

    @property
    def _samples_file(self) -> Path:
        return self.folder / "data" / "samples" / "samples.json"

    @cached_property
    def val_documents(self) -> list[np.ndarray]:
        """The token ids of each document of the val split."""
        tokens, _ = open_tokens(self.folder / "data" / "tokens", "val", self.tokenizer.hash)
        return split_documents(tokens, self.tokenizer.end_of_text_id)

    def val_text(self, index: int) -> str:
        """The text of a document of the val split."""
        return self.tokenizer.decode(self.val_documents[index].tolist()).removesuffix(END_OF_TEXT)

    @cached_property
    def looking_back(self) -> LookingBack:
        """How far the attention heads look back in the first documents of the val split."""
        are_stories = self.params.data.source == "stories"
        return look_back(self.model, self.tokenizer, self.val_documents, are_stories)
