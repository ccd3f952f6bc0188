import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Any]:
    """A Ray cluster of two nodes on this machine, each with one processor; skips the test if Ray is not installed."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
