import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from lm import config
from lm.config import Params
from lm.model.config import ModelConfig
from lm.model.fused import flash_cpu
from lm.tokenizer.text.fast.build import can_load
from lm.training.config import RunConfig, RuntimeConfig

PROJECT = Path(__file__).resolve().parent.parent

# How long an example takes depends on what else the machine does.
settings.register_profile("lm", deadline=None)
settings.load_profile("lm")


@pytest.fixture(scope="session", autouse=True)
def attention_kernels() -> None:
    """Compile the kernels of attention, so that no test waits for that or finds the message about it on stderr."""
    if can_load():
        flash_cpu.library.load()


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


@pytest.fixture(scope="session")
def run(params: Params, small: ModelConfig) -> RunConfig:
    return RunConfig(
        model=small,
        optim=dataclasses.replace(
            params.optim, optimizer="adamw", max_learning_rate=3e-3, schedule="cosine", warmup_steps=2, decay_steps=0
        ),
        train=dataclasses.replace(
            params.train,
            max_steps=12,
            batch_size=4,
            windows="stream",
            short_fraction=0.0,
            eval_every=4,
            precision="float32",
        ),
    )


@pytest.fixture(scope="session")
def runtime() -> RuntimeConfig:
    return RuntimeConfig(
        device="cpu",
        num_processes=1,
        parallelism="ddp",
        compile=False,
        attention_backend="auto",
        micro_batch_size=0,
        checkpoint_activations=False,
        checkpoint_every=3,
        keep_checkpoints=2,
        tracking="none",
        cluster="none",
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
