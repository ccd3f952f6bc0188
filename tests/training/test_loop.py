import csv
import dataclasses
import json
import math
import re
from types import SimpleNamespace

import pytest
import torch

import lm.training.loop
import lm.training.train
from lm.errors import UserError
from lm.model.cost import training_flops_per_token
from lm.model.files import save_model
from lm.model.transformer import TransformerLM
from lm.training.batches import batch, window_starts
from lm.training.loop import TrainingLoop
from lm.training.schedule import learning_rate
from lm.training.train import train


def weights_of(result):
    return dict(result.model.named_parameters())


@pytest.fixture(scope="module")
def undisturbed(data, tokenizer, runtime, paths_in, tmp_path_factory):
    """Train a run that is not stopped, once for all tests; returns its weights, its result and its curve."""
    finished = {}

    def undisturbed(run):
        if run not in finished:
            results = []
            folder = tmp_path_factory.mktemp("undisturbed")
            train(run, data, tokenizer, runtime, paths_in(folder), results.append)
            finished[run] = weights_of(results[0]), results[0], (folder / "curve.csv").read_bytes()
        return finished[run]

    return undisturbed


def test_training_equals_a_plain_loop_over_torchs_own_parts(run, data, tokenizer, undisturbed):
    torch.manual_seed(run.train.seed)
    model = TransformerLM(run.model, tokenizer.vocab_size)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": run.optim.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(run.optim.beta1, run.optim.beta2), eps=run.optim.eps)
    losses = []
    length = run.model.context_length
    starts = range(0, len(data.train) - length, length)
    for step in range(run.train.max_steps):
        inputs, targets = batch(data.train, starts, step, run.train.batch_size, length, run.train.seed)
        loss = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), run.optim.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step + 1, run.optim, run.train.max_steps)
        optimizer.step()
        losses.append(loss.item())
    weights, result, _ = undisturbed(run)
    torch.testing.assert_close(weights, dict(model.named_parameters()), rtol=1e-4, atol=1e-5)
    rows = result.history
    assert [row["step"] for row in rows] == [0, 4, 8, 12]
    assert rows[1]["train_loss"] == pytest.approx(sum(losses[:4]) / 4, rel=1e-5)


def test_the_model_learns_and_the_metrics_say_so(run, data, tokenizer, trained):
    result = trained(dataclasses.replace(run, train=dataclasses.replace(run.train, max_steps=40)))
    metrics = result.metrics
    assert metrics["val_loss"] < 0.75 * result.history[0]["val_loss"]
    assert metrics["val_perplexity"] == pytest.approx(math.exp(metrics["val_loss"]))
    nats = metrics["val_loss"] * len(data.val)
    assert metrics["val_bits_per_byte"] == pytest.approx(nats / math.log(2) / data.val_text_bytes)
    assert "floor_bits_per_byte" not in metrics  # nobody knows the entropy of this text
    assert metrics["diverged"] == 0 and metrics["step"] == 40 and metrics["tokens"] == 40 * 4 * 16
    assert metrics["num_parameters"] == sum(p.numel() for p in result.model.parameters())


def test_a_training_on_two_threads_gives_the_same_bits_every_time(run, trained):
    # Large enough that PyTorch splits every kernel between the threads, and with so few different tokens that both
    # threads add to the gradients of the same ones.
    large = dataclasses.replace(run.model, d_model=128, d_ff=256, context_length=128)
    train = dataclasses.replace(run.train, max_steps=2, batch_size=8, eval_every=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        results = [weights_of(trained(dataclasses.replace(run, model=large, train=train), f"{i}")) for i in range(3)]
    finally:
        torch.set_num_threads(threads)
    for name, weight in results[0].items():
        assert all(weight.equal(other[name]) for other in results[1:]), name


def test_accumulated_micro_batches_give_the_same_result(run, runtime, trained, undisturbed):
    weights, _, _ = undisturbed(run)
    parts = trained(run, "parts", dataclasses.replace(runtime, micro_batch_size=3))
    torch.testing.assert_close(weights_of(parts), weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("backend", "document_mask"), [("reference", False), ("flash", True)])
def test_every_attention_gives_the_same_result(run, runtime, trained, undisturbed, backend, document_mask):
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, document_mask=document_mask))
    weights, _, _ = undisturbed(run)
    other = trained(run, "other", dataclasses.replace(runtime, attention_backend=backend))
    torch.testing.assert_close(weights_of(other), weights, rtol=1e-4, atol=1e-5)


def test_bfloat16_stays_close(run, trained, undisturbed):
    _, exact, _ = undisturbed(run)
    rounded = trained(dataclasses.replace(run, train=dataclasses.replace(run.train, precision="bfloat16")), "rounded")
    assert rounded.metrics["val_loss"] == pytest.approx(exact.metrics["val_loss"], rel=0.01)
    assert rounded.metrics["val_loss"] != exact.metrics["val_loss"]


def test_the_curve_has_one_row_per_evaluation_and_continuations(run, undisturbed):
    _, result, curve = undisturbed(run)
    rows = list(csv.DictReader(curve.decode().splitlines()))
    assert [int(row["step"]) for row in rows] == [0, 4, 8, 12]
    assert [float(row["val_loss"]) for row in rows] == [row["val_loss"] for row in result.history]
    assert rows[0]["train_loss"] == "" and all(row["continuation"] for row in rows)


def test_a_row_of_the_curve_is_one_line_whatever_the_model_generates(run, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(lm.training.loop, "greedy_continuation", lambda *args: 'a\r"b"\n,c\0\\ ü')
    trained(run)
    text = (tmp_path / "run" / "curve.csv").read_text(encoding="utf-8")
    assert len(text.splitlines()) == 5
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["step"] for row in rows] == ["0", "4", "8", "12"]
    assert rows[0]["continuation"] == r"a\r\"b\"\n,c\u0000\\ ü"


class Stopped(Exception):
    """Stands for whatever ends a run early."""


@pytest.fixture
def assert_resumes_when_stopped(undisturbed, trained, tmp_path, monkeypatch):
    """Stop `run` after some steps, and resume it: the result must have the bits of a run that was not stopped."""

    def assert_resumes(run, steps):
        weights, expected, curve = undisturbed(run)
        take_step, count = TrainingLoop._take_step, 0

        def stopping(self, step):
            nonlocal count
            if count == steps:
                raise Stopped
            count += 1
            return take_step(self, step)

        with monkeypatch.context() as patch:
            patch.setattr(TrainingLoop, "_take_step", stopping)
            with pytest.raises(Stopped):
                trained(run, "stopped")
        result = trained(run, "stopped")
        for name, weight in weights_of(result).items():
            assert weight.equal(weights[name]), name
        assert result.history == expected.history and result.metrics == expected.metrics
        assert (tmp_path / "stopped" / "curve.csv").read_bytes() == curve

    return assert_resumes


# A checkpoint follows steps 3, 6 and 9, and an evaluation with a checkpoint follows steps 0, 4, 8 and 12.
@pytest.mark.parametrize(
    "steps", [0, 3, 4, 7, 11, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (1, 2, 5, 6, 8, 9, 10))]
)
def test_a_run_stopped_after_any_step_resumes_bit_for_bit(run, assert_resumes_when_stopped, steps):
    assert_resumes_when_stopped(run, steps)


@pytest.mark.parametrize(
    "changes",
    [
        {"optim": {"optimizer": "muon", "schedule": "wsd", "decay_steps": 6, "decay_shape": "1-sqrt"}},
        {
            "model": {"qk_norm": True, "tie_embeddings": True, "ffn": "silu"},
            "train": {"document_mask": True, "precision": "bfloat16"},
        },
    ],
    ids=["muon", "documents"],
)
def test_a_stopped_run_with_other_switches_resumes_bit_for_bit(run, assert_resumes_when_stopped, changes):
    sections = {name: dataclasses.replace(getattr(run, name), **values) for name, values in changes.items()}
    assert_resumes_when_stopped(dataclasses.replace(run, **sections), 7)


def test_checkpointed_activations_change_no_bit_of_a_run(run, runtime, trained, undisturbed):
    weights, plain, _ = undisturbed(run)
    checkpointed = trained(run, "checkpointed", dataclasses.replace(runtime, checkpoint_activations=True))
    assert checkpointed.history == plain.history
    assert all(weight.equal(weights[name]) for name, weight in weights_of(checkpointed).items())


def test_a_run_stopped_while_its_outputs_are_written_only_writes_them_again(
    run, data, tokenizer, runtime, paths_in, trained, undisturbed, tmp_path, monkeypatch
):
    _, expected, curve = undisturbed(run)

    def stopped_write(result):
        raise Stopped

    folder = tmp_path / "stopped"
    folder.mkdir()
    with pytest.raises(Stopped):
        train(run, data, tokenizer, runtime, paths_in(folder), stopped_write)
    (folder / "curve.csv").unlink()  # as dvc does before it runs a stage again
    monkeypatch.setattr(TrainingLoop, "_take_step", None)
    result = trained(run, "stopped")
    assert result.history == expected.history
    assert (folder / "curve.csv").read_bytes() == curve
    assert list((folder / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    ("section", "change"),
    [("model", {"rope_theta": 9.0}), ("optim", {"beta2": 0.9}), ("train", {"seed": 7}), ("data", {"identity": "y"})],
)
def test_a_checkpoint_of_another_run_is_not_resumed(run, data, trained, tmp_path, monkeypatch, section, change):
    monkeypatch.setattr(lm.training.train.Checkpoints, "finish", lambda self: None)
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, max_steps=1))
    trained(run)
    folders = set((tmp_path / "run" / "checkpoints").iterdir())
    trained(run)
    assert set((tmp_path / "run" / "checkpoints").iterdir()) == folders
    if section == "data":
        trained(run, data=dataclasses.replace(data, **change))
    else:
        trained(dataclasses.replace(run, **{section: dataclasses.replace(getattr(run, section), **change)}))
    assert len(set((tmp_path / "run" / "checkpoints").iterdir())) == 2


def test_a_run_that_diverges_ends_with_the_model_of_its_last_evaluation(run, trained, undisturbed, monkeypatch, capsys):
    _, expected, _ = undisturbed(run)
    take_step = TrainingLoop._take_step

    def exploding(self, step):
        return take_step(self, step) if step < 11 else (math.nan, 1.0)

    monkeypatch.setattr(TrainingLoop, "_take_step", exploding)
    result = trained(run, "diverged")
    assert result.metrics["diverged"] == 1 and result.metrics["step"] == 8
    assert result.history == expected.history[:3]
    assert result.metrics["val_loss"] == expected.history[2]["val_loss"]
    assert "not finite after step 10" in capsys.readouterr().out


def not_finite_at(monkeypatch, steps):
    """Make the loss of these steps NaN; as in `TrainStep`, nothing else happens in them."""
    take_step = TrainingLoop._take_step
    monkeypatch.setattr(
        TrainingLoop,
        "_take_step",
        lambda self, step: (math.nan, 1.0) if step in steps else take_step(self, step),
    )


def test_steps_that_are_not_finite_are_skipped_as_often_as_allowed(run, trained, monkeypatch, capsys):
    allowed = dataclasses.replace(run, train=dataclasses.replace(run.train, max_skipped_steps=2))
    not_finite_at(monkeypatch, {3, 7})
    result = trained(allowed, "enough")
    assert result.metrics["diverged"] == 0 and result.metrics["step"] == 12
    assert result.metrics["skipped_steps"] == 2
    assert "step 7: skipped, because the loss or the gradient is not finite (2 of at most 2 skipped steps)" in (
        capsys.readouterr().out
    )
    not_finite_at(monkeypatch, {3, 7, 10})
    result = trained(allowed, "too often")
    assert result.metrics["diverged"] == 1 and result.metrics["step"] == 8


def test_a_finite_spike_is_never_skipped(run, trained, monkeypatch):
    allowed = dataclasses.replace(run, train=dataclasses.replace(run.train, max_skipped_steps=5, eval_every=1))
    take_step = TrainingLoop._take_step
    monkeypatch.setattr(
        TrainingLoop,
        "_take_step",
        lambda self, step: (1e30, 1e30) if step == 5 else take_step(self, step),
    )
    result = trained(allowed)
    assert result.history[5]["train_loss"] == 1e30 and result.metrics["skipped_steps"] == 0


def test_the_files_grow_while_the_run_trains(run, trained, tmp_path, monkeypatch):
    seen = []
    take_step = TrainingLoop._take_step

    def looking(self, step):
        rows = (tmp_path / "run" / "curve.csv").read_text(encoding="utf-8").splitlines()
        seen.append((step, len(rows) - 1, json.loads((tmp_path / "run" / "metrics.json").read_text())["step"]))
        return take_step(self, step)

    monkeypatch.setattr(TrainingLoop, "_take_step", looking)
    trained(run)
    assert seen == [(step, 1 + (step - 1) // 4, (step - 1) // 4 * 4) for step in range(1, 13)]


def test_a_learning_rate_that_is_far_too_high_is_a_result(run, trained):
    wild = dataclasses.replace(run.optim, max_learning_rate=1e3, min_learning_rate=1e3, warmup_steps=0)
    result = trained(dataclasses.replace(run, optim=wild))
    assert result.metrics["diverged"] == 1
    assert all(math.isfinite(value) for value in result.metrics.values())
    assert all(weight.isfinite().all() for weight in result.model.parameters())


@pytest.mark.parametrize("stopped", [False, True])
def test_a_model_that_is_not_finite_at_the_start_is_a_result(run, trained, monkeypatch, stopped):
    monkeypatch.setattr(lm.training.loop, "mean_loss", lambda *args: math.nan)
    if stopped:
        with monkeypatch.context() as patch:
            patch.setattr(TrainingLoop, "_return_to_last_evaluation", lambda self: (_ for _ in ()).throw(Stopped))
            with pytest.raises(Stopped):
                trained(run)
    result = trained(run)
    assert result.metrics["diverged"] == 1 and result.metrics["step"] == 0
    assert "val_loss" not in result.metrics and result.history[0]["val_loss"] is None


def test_the_same_run_is_refused_while_it_is_training(run, trained, monkeypatch):
    def second(self, step):
        with pytest.raises(UserError, match="another process is training the same run"):
            trained(run)
        raise Stopped

    monkeypatch.setattr(TrainingLoop, "_take_step", second)
    with pytest.raises(Stopped):
        trained(run)


def test_too_little_text_is_reported_before_any_work(run, data, trained):
    with pytest.raises(UserError, match="model.context_length: one window needs 17 tokens, but the train split has 16"):
        trained(run, data=dataclasses.replace(data, train=data.train[:16]))
    with pytest.raises(UserError, match="the val split is empty"):
        trained(run, data=dataclasses.replace(data, val=data.val[:0]))


def test_a_run_starts_from_the_initial_model(run, tokenizer, trained, undisturbed, tmp_path):
    _, first, _ = undisturbed(run)
    save_model(tmp_path / "model", first.model, tokenizer.hash)
    continued = dataclasses.replace(run, train=dataclasses.replace(run.train, initial_model=str(tmp_path / "model")))
    second = trained(continued)
    assert second.history[0]["val_loss"] == first.history[-1]["val_loss"]
    assert second.metrics["val_loss"] < first.metrics["val_loss"]


def test_an_initial_model_that_has_changed_begins_another_run(run, tokenizer, trained, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    continued = dataclasses.replace(run, train=dataclasses.replace(run.train, initial_model=str(folder), max_steps=1))
    names = []
    real = lm.training.train.fingerprint
    monkeypatch.setattr(lm.training.train, "fingerprint", lambda **facts: names.append(real(**facts)) or names[-1])
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        save_model(folder, TransformerLM(run.model, tokenizer.vocab_size), tokenizer.hash)
        trained(continued)
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize(
    ("changes", "tokenizer_hash", "message"),
    [
        (
            {"d_ff": 64, "qk_norm": True},
            None,
            r"has a different configuration than params.yaml; set model.d_ff=64 model.qk_norm=True",
        ),
        ({}, "another", "trained with a different tokenizer"),
        (None, None, "train.initial_model: expected none or the folder of a model, got .*model, which is not a folder"),
    ],
)
def test_an_initial_model_that_does_not_fit_is_refused(
    run, tokenizer, trained, tmp_path, changes, tokenizer_hash, message
):
    folder = tmp_path / "model"
    if changes is not None:
        model = TransformerLM(dataclasses.replace(run.model, **changes), tokenizer.vocab_size)
        save_model(folder, model, tokenizer_hash or tokenizer.hash)
    continued = dataclasses.replace(run, train=dataclasses.replace(run.train, initial_model=str(folder)))
    with pytest.raises(UserError, match=message):
        trained(continued)


def test_an_initial_model_that_has_diverged_is_refused(run, tokenizer, trained, tmp_path):
    model = TransformerLM(run.model, tokenizer.vocab_size)
    model.lm_head.weight.data[0, 0] = math.nan
    save_model(tmp_path / "model", model, tokenizer.hash)
    continued = dataclasses.replace(run, train=dataclasses.replace(run.train, initial_model=str(tmp_path / "model")))
    with pytest.raises(UserError, match="train.initial_model: .* has weights that are not finite"):
        trained(continued)


def test_the_plan_and_the_evaluations_are_reported(run, data, tokenizer, runtime, paths_in, tmp_path, capsys):
    lines = []
    train(run, data, tokenizer, runtime, paths_in(tmp_path), lambda result: None, lines.append)
    plan, start, remaining, *evaluations = lines
    assert plan.startswith("parameters ") and start.startswith("step 0, val loss ")
    assert re.fullmatch(r"about \d+ s left, not counting evaluations", remaining)
    assert [line.partition(", val loss ")[0] for line in evaluations] == ["step 4", "step 8", "step 12"]
    assert capsys.readouterr() == ("", "")  # no progress bar either, because this is not a terminal


@pytest.fixture
def short_first(run):
    """Short windows for 5 of 12 steps: 5 of the 16 tokens of a window, so 3 windows in place of one."""
    train = dataclasses.replace(run.train, windows="documents", short_fraction=0.4, short_context_length=5)
    return dataclasses.replace(run, train=train)


def test_short_windows_come_first_and_begin_where_documents_begin(short_first, data, tokenizer, trained, monkeypatch):
    batches = []

    class Recorded(lm.training.loop.TrainStep):
        def __call__(self, inputs, targets, *arguments):
            batches.append(inputs)
            return super().__call__(inputs, targets, *arguments)

    monkeypatch.setattr(lm.training.loop, "TrainStep", Recorded)
    result = trained(short_first)
    assert [tuple(inputs.shape) for inputs in batches] == [(12, 5)] * 5 + [(4, 16)] * 7
    assert result.metrics["tokens"] == sum(inputs.numel() for inputs in batches) == short_first.num_tokens(12)
    starts = window_starts(data.train, "documents", 16, tokenizer.end_of_text_id)
    for step, inputs in enumerate(batches):
        index, size, length = (step, 12, 5) if step < 5 else (15 + step - 5, 4, 16)  # 5 * 12 = 15 * 4 windows before
        assert inputs.equal(batch(data.train, starts, index, size, length, short_first.train.seed)[0])


def test_while_training_reads_beginnings_so_does_the_evaluation_of_documents(short_first, trained, monkeypatch):
    lengths = []
    read = lm.training.loop.DocumentLosses.__call__

    def recorded(self, model, max_length):
        lengths.append(max_length)
        return read(self, model, max_length)

    monkeypatch.setattr(lm.training.loop.DocumentLosses, "__call__", recorded)
    trained(short_first)
    trained(dataclasses.replace(short_first, train=dataclasses.replace(short_first.train, short_fraction=0.0)), "long")
    assert lengths == [5, 5, None, None] + [None] * 4


@pytest.mark.parametrize("stop_at", [3, 5, 8])
def test_a_run_with_short_windows_resumes_with_the_same_bits(short_first, assert_resumes_when_stopped, stop_at):
    assert_resumes_when_stopped(short_first, stop_at)


def test_the_share_of_the_peak_is_that_of_all_processes_together(run, tokenizer, monkeypatch):
    flops = training_flops_per_token(run.model, tokenizer.vocab_size)
    monkeypatch.setattr(lm.training.loop, "peak_flops", lambda device, precision: 100.0 * flops)
    monkeypatch.setattr(lm.training.loop, "num_processes", lambda: 2)
    loop = SimpleNamespace(config=run, tokenizer=tokenizer, device=torch.device("cuda"))
    assert TrainingLoop._rates(loop, 1.0, 50.0)["mfu"] == "25.0%"
