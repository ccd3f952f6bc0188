import dataclasses
from pathlib import Path

import pytest
from hypothesis import settings

from lm import config
from lm.config import Params
from lm.model.config import ModelConfig

PROJECT = Path(__file__).resolve().parent.parent

# How long an example takes depends on what else the machine does.
settings.register_profile("lm", deadline=None)
settings.load_profile("lm")


@pytest.fixture(scope="session")
def project() -> Path:
    return PROJECT


@pytest.fixture(scope="session")
def params() -> Params:
    return config.load(PROJECT / "params.yaml")


@pytest.fixture(scope="session")
def small(params: Params) -> ModelConfig:
    """A model that is built and run in milliseconds, of the default switches."""
    return dataclasses.replace(
        params.model, d_model=32, num_layers=2, num_heads=4, num_kv_heads=4, d_ff=48, context_length=16
    )
