import dataclasses
import math
from collections import namedtuple

import pytest
import torch

import lm.memory
import lm.planning.plan
from lm.errors import UserError
from lm.model.cost import training_flops_per_token
from lm.model.transformer import TransformerLM
from lm.planning.memory_estimate import process_bytes, training_bytes
from lm.planning.plan import Plan, measure_step_seconds, plan
from lm.training.config import MAX_BATCH_SIZE
from lm.training.loss import CHUNK_LOGITS

CPU = torch.device("cpu")
VOCAB_SIZE = 61


@pytest.fixture
def planned(run, runtime, tmp_path, monkeypatch):
    """Plan the small run, with `memory` bytes of CPU memory and `free` bytes of disk space available."""

    def planned(memory: int = 10**9, free: int = 10**9, num_processes: int = 1, batch_size: int = 8, **changes) -> Plan:
        monkeypatch.setattr(lm.planning.plan, "available_memory", lambda device, num_processes: {"CPU": memory})
        monkeypatch.setattr(lm.planning.plan.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(free))
        settings = dataclasses.replace(runtime, **changes)
        changed = dataclasses.replace(run, train=dataclasses.replace(run.train, batch_size=batch_size))
        return plan(changed, VOCAB_SIZE, settings, CPU, tmp_path / "none yet", num_processes)

    return planned


def bytes_of_one(run, micro_batch_size: int, num_micro_batches: int = 1, checkpoint_activations: bool = False) -> dict:
    return training_bytes(
        run.model,
        VOCAB_SIZE,
        micro_batch_size,
        "float32",
        num_micro_batches=num_micro_batches,
        checkpoint_activations=checkpoint_activations,
    )


def total(run, micro_batch_size: int, **arguments) -> int:
    """The bytes that one process needs: all kinds, and the copy and the file of a checkpoint."""
    kinds = bytes_of_one(run, micro_batch_size, **arguments)
    return sum(kinds.values()) + 2 * (kinds["weights"] + kinds["optimizer"])


def test_what_one_process_needs(run, planned):
    # Embeddings and head 2 · 61 · 32, attention 2 · 4 · 32², feed-forward 2 · 3 · 32 · 48, norms 5 · 32.
    count = 3904 + 8192 + 9216 + 160
    result = planned()
    assert sum(result.parameters.values()) == count
    assert result.tokens == 12 * 8 * 16
    assert result.flops_per_token == training_flops_per_token(run.model, VOCAB_SIZE)
    assert result.flops == 12 * 8 * 16 * result.flops_per_token
    assert result.memory["checkpoint"] == 2 * (4 + 8) * count  # weights and two moments, twice
    assert result.needed_memory == {"CPU": total(run, 8)}
    assert result.micro_batch_size == result.largest_micro_batch_size == 8
    # The newest two, the last and the best evaluated one, the one being written; and the model.
    assert sum(result.disk.values()) == 5 * 12 * count + 4 * count
    result.check()


def test_a_micro_batch_above_the_share_is_the_share(planned):
    assert planned(micro_batch_size=50).needed_memory == planned().needed_memory
    assert planned(micro_batch_size=50).micro_batch_size == 8


def test_the_buckets_and_copies_of_ddp(run, planned):
    one = bytes_of_one(run, 4, num_micro_batches=2)  # gradients exist from the start
    state = one["weights"] + one["optimizer"]
    assert planned(num_processes=2).memory == {**one, "checkpoint": state + state // 2}
    # With two micro batches, the first one's gradients exist beside the buckets.
    one = bytes_of_one(run, 2, num_micro_batches=2)
    expected = {**one, "gradients": one["gradients"] + one["weights"], "checkpoint": state + state // 2}
    assert planned(num_processes=2, micro_batch_size=2).memory == expected


def test_the_shards_of_fsdp(run, planned):
    one = bytes_of_one(run, 2)
    state = one["weights"] + one["optimizer"]
    ends, block = 4 * 3904, 4 * (8192 + 9216 + 160) // 2
    memory = planned(num_processes=4, parallelism="fsdp").memory
    assert memory["weights"] == one["weights"] // 4 + ends + 2 * block
    assert memory["optimizer"] == one["optimizer"] // 4
    assert memory["checkpoint"] == 2 * (state // 4)
    assert memory["activations"] == one["activations"]


def test_one_process_does_not_shard(planned):
    assert planned(parallelism="fsdp").memory == planned().memory


@pytest.mark.parametrize("batch_size", [7, 24])
@pytest.mark.parametrize("checkpointed", [True, False])
def test_the_nearest_fit_is_that_of_trying_all_settings(run, planned, batch_size, checkpointed):
    def largest(memory: int, checkpoint_activations: bool) -> int:
        numbers = {size: math.ceil(batch_size / size) for size in range(1, batch_size + 1)}
        needed = {
            size: total(run, size, num_micro_batches=number, checkpoint_activations=checkpoint_activations)
            for size, number in numbers.items()
        }
        return max((size for size in needed if needed[size] <= memory), default=0)

    found = set()
    for memory in range(800_000, 3_200_000, 60_000):
        result = planned(memory, batch_size=batch_size, checkpoint_activations=checkpointed)
        size = largest(memory, checkpointed)
        assert result.largest_micro_batch_size == size
        expected = size or largest(memory, True)
        if expected:
            changes = {"micro_batch_size": expected, "checkpoint_activations": checkpointed or not size}
            assert result.nearest == dataclasses.replace(result.runtime, **changes)
        else:
            assert result.nearest is None
        found.add((size, expected))
    assert {(0, 0), (batch_size, batch_size)} <= found
    assert checkpointed or (0, 1) in found  # where activations must be checkpointed


def test_the_nearest_fit_is_exact_where_a_larger_micro_batch_needs_less(run, runtime, tmp_path, monkeypatch):
    vocab_size, batch_size = 20_000, 50
    monkeypatch.setitem(CHUNK_LOGITS, "cpu", 16 * 16 * vocab_size)  # 17 windows need two chunks
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, batch_size=batch_size))
    sizes = {size: dataclasses.replace(runtime, micro_batch_size=size) for size in range(1, batch_size + 1)}
    needed = {size: sum(process_bytes(run, vocab_size, changed, "cpu", 1).values()) for size, changed in sizes.items()}
    assert needed[17] < needed[16] and needed[50] < needed[49]
    for memory in sorted(needed.values()):
        monkeypatch.setattr(lm.planning.plan, "available_memory", lambda *_, memory=memory: {"CPU": memory})
        expected = max(size for size in needed if needed[size] <= memory)
        assert plan(run, vocab_size, runtime, CPU, tmp_path, 1).largest_micro_batch_size == expected


@pytest.mark.parametrize("memory", [10**5, 10**7, 10**9])
def test_the_largest_batch_is_planned_in_few_attempts(run, planned, monkeypatch, memory):
    attempts = []
    real = lm.planning.plan.process_bytes
    monkeypatch.setattr(lm.planning.plan, "process_bytes", lambda *args: attempts.append(args) or real(*args))
    result = planned(memory, batch_size=MAX_BATCH_SIZE)
    assert result.share == MAX_BATCH_SIZE and len(attempts) < 5000
    assert result.largest_micro_batch_size < MAX_BATCH_SIZE


def test_a_run_is_refused_if_a_single_byte_is_missing(run, planned):
    needed = total(run, 8)
    planned(needed).check()
    with pytest.raises(UserError):
        planned(needed - 1).check()
    result = planned()
    planned(free=sum(result.disk.values())).check()
    with pytest.raises(UserError):
        planned(free=sum(result.disk.values()) - 1).check()


def test_the_refusal_names_the_nearest_settings(run, planned):
    needed, all_at_once = total(run, 3, num_micro_batches=3), total(run, 8)
    with pytest.raises(UserError) as error:
        planned(needed).check()
    assert str(error.value) == (
        f"runtime.micro_batch_size: with 8, a process needs {all_at_once / 1e6:.2f} MB of CPU memory, "
        f"but {needed / 1e6:.2f} MB are available; set runtime.micro_batch_size: 3"
    )
    needed = total(run, 1, num_micro_batches=8, checkpoint_activations=True)
    with pytest.raises(UserError, match="; set runtime.micro_batch_size: 1, runtime.checkpoint_activations: true$"):
        planned(needed).check()
    with pytest.raises(UserError, match="; the model itself does not fit: lower model.num_layers or model.d_model$"):
        planned(needed - 1).check()


def test_what_fits_only_when_sharded_is_sent_to_fsdp(planned):
    fsdp = planned(num_processes=4, parallelism="fsdp")
    needed = fsdp.needed_memory["CPU"]
    assert needed < planned(num_processes=4, micro_batch_size=1, checkpoint_activations=True).needed_memory["CPU"]
    with pytest.raises(UserError, match="; set runtime.parallelism: fsdp, runtime.micro_batch_size: 2$"):
        planned(needed, num_processes=4).check()
    with pytest.raises(UserError, match="the model itself does not fit"):
        planned(100_000, num_processes=4).check()


def test_a_full_disk_is_refused_with_the_checkpoints_that_fit(planned):
    one, model = 12 * 21472, 4 * 21472
    planned(free=13 * one + model, keep_checkpoints=10).check()
    with pytest.raises(
        UserError, match=r"none yet: checkpoints and model need 3.44 MB, but 3.18 MB are free; "
    ) as error:
        planned(free=12 * one + model, keep_checkpoints=10).check()
    assert str(error.value).endswith("free some space, or set runtime.keep_checkpoints: 9")
    planned(free=12 * one + model, keep_checkpoints=9).check()
    with pytest.raises(UserError, match="free; free some space$"):
        planned(free=4 * one + model - 1, keep_checkpoints=10).check()


def test_existing_checkpoints_count_as_free_space(run, runtime, tmp_path, monkeypatch):
    asked = []
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(lm.planning.plan.shutil, "disk_usage", lambda path: asked.append(path) or usage(1000))

    def free() -> int:
        return plan(run, VOCAB_SIZE, runtime, CPU, tmp_path / "a" / "b", 1).free_disk

    assert free() == 1000
    (tmp_path / "a" / "b" / "step").mkdir(parents=True)
    (tmp_path / "a" / "b" / "step" / "x").write_bytes(bytes(50))
    assert free() == 1050
    assert asked == [tmp_path, tmp_path / "a" / "b"]  # the nearest folder that exists


@pytest.mark.parametrize(
    "batch_size, num_processes, nearest", [(8, 3, "6, 9"), (2, 3, "3"), (7, 2, "6, 8"), (4, 8, "8")]
)
def test_a_batch_that_cannot_be_shared_evenly_is_refused(planned, batch_size, num_processes, nearest):
    message = (
        f"train.batch_size: expected a multiple of runtime.num_processes = {num_processes}, got {batch_size}; "
        f"the nearest are {nearest}"
    )
    with pytest.raises(UserError) as error:
        planned(batch_size=batch_size, num_processes=num_processes)
    assert str(error.value) == message


def test_the_table(planned):
    lines = str(planned(num_processes=2, micro_batch_size=3)).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) < 25
    text = "\n".join(" ".join(line.split()) for line in lines)
    assert text.startswith("parameters token_embeddings 1,952\nattention 8,192\n")
    assert "\ntotal 21,472\ncompute per token " in text
    assert "\n1,536 tokens " in text
    assert "\nmemory per process weights 85.9 kB\noptimizer 172 kB\n" in text
    assert "\nCPU total, of 1 GB available " in text
    assert "\nmicro batch sequences 3\nlargest that fits, of 4 4\n" in text
    assert text.endswith("\ndisk 5 checkpoints 1.29 MB\nmodel 85.9 kB\ntotal, of 1 GB free 1.37 MB")


def test_on_a_gpu_only_a_checkpoint_needs_cpu_memory(run, runtime, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 2 * 10**9))
    monkeypatch.setattr(lm.memory, "cgroup_available", lambda: 100_000)
    result = plan(run, VOCAB_SIZE, runtime, torch.device("cuda"), tmp_path, 1)
    kinds = training_bytes(run.model, VOCAB_SIZE, 4, "float32", device="cuda")
    assert result.available_memory == {"GPU": 10**9, "CPU": 100_000}
    assert result.needed_memory == {"GPU": sum(kinds.values()), "CPU": 2 * 12 * 21472}
    with pytest.raises(UserError, match="needs 515 kB of CPU memory, but 100 kB are available; the model itself"):
        result.check()


def test_whole_steps_are_measured(run, runtime, monkeypatch):
    state = torch.get_rng_state()
    seen = []

    def record(model, token_ids, **arguments):
        seen.append(token_ids)
        return hidden(model, token_ids, **arguments)

    hidden = TransformerLM.hidden
    monkeypatch.setattr(TransformerLM, "hidden", record)
    assert measure_step_seconds(run, VOCAB_SIZE, runtime, CPU) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert [tuple(ids.shape) for ids in seen] == 4 * [(4, 16)]  # one warmup, three measured
    assert all(ids.min() >= 0 and ids.max() < VOCAB_SIZE for ids in seen)


def test_of_many_micro_batches_two_are_measured(run, runtime, monkeypatch):
    seconds = iter([5.0, 3.0])  # two micro batches, then one
    sizes = []

    def measure(update, tokens, micro_batch_size):
        sizes.append(len(tokens))
        assert micro_batch_size == 2
        return next(seconds)

    monkeypatch.setattr(lm.planning.plan, "_median_seconds", measure)
    changed = dataclasses.replace(run, train=dataclasses.replace(run.train, batch_size=10, document_mask=True))
    settings = dataclasses.replace(runtime, micro_batch_size=2)
    assert measure_step_seconds(changed, VOCAB_SIZE, settings, CPU) == 3 + 4 * 2
    assert sizes == [4, 2]
