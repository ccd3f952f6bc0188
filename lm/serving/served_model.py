"""What a server offers: one model, with everything that the API and the page need to know about it."""

from dataclasses import dataclass
from pathlib import Path

from lm.generation.config import SampleConfig
from lm.model.transformer import TransformerLM
from lm.serving.limits import Limits
from lm.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A trained model, its tokenizer, and the settings of the server.

    Attributes:
        name: the name of the model in the API and on the page.
        model: the model, on the device that it runs on.
        tokenizer: the tokenizer that the model was trained with.
        defaults: the prompt and the sampling settings that the page starts with.
        metrics: the folder whose train.csv the page plots, if it exists.
        limits: what requests may ask for.
    """

    name: str
    model: TransformerLM
    tokenizer: Tokenizer
    defaults: SampleConfig
    metrics: Path
    limits: Limits
