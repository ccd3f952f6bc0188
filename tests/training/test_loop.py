import csv
import dataclasses
import json
import math
import re
from types import SimpleNamespace

import pytest
import torch

import lm.training.loop
from lm.errors import UserError
from lm.model.cost import training_flops_per_token
from lm.model.transformer import TransformerLM
from lm.training.batches import batch, window_starts
from lm.training.loop import TrainingLoop
from lm.training.schedule import learning_rate
from lm.training.train import train
from tests.training.conftest import weights_of


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


def test_checkpointed_activations_change_no_bit_of_a_run(run, runtime, trained, undisturbed):
    weights, plain, _ = undisturbed(run)
    checkpointed = trained(run, "checkpointed", dataclasses.replace(runtime, checkpoint_activations=True))
    assert checkpointed.history == plain.history
    assert all(weight.equal(weights[name]) for name, weight in weights_of(checkpointed).items())


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


def test_too_little_text_is_reported_before_any_work(run, data, trained):
    with pytest.raises(UserError, match="model.context_length: one window needs 17 tokens, but the train split has 16"):
        trained(run, data=dataclasses.replace(data, train=data.train[:16]))
    with pytest.raises(UserError, match="the val split is empty"):
        trained(run, data=dataclasses.replace(data, val=data.val[:0]))


def test_the_plan_and_the_evaluations_are_reported(run, data, tokenizer, runtime, paths_in, tmp_path, capsys):
    lines = []
    train(run, data, tokenizer, runtime, paths_in(tmp_path), lambda result: None, lines.append)
    plan, start, remaining, *evaluations = lines
    assert plan.startswith("parameters ") and start.startswith("step 0, val loss ")
    assert re.fullmatch(r"about \d+ s left, not counting evaluations", remaining)
    assert [line.partition(", val loss ")[0] for line in evaluations] == ["step 4", "step 8", "step 12"]
    assert capsys.readouterr() == ("", "")  # no progress bar either, because this is not a terminal


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


def test_the_share_of_the_peak_is_that_of_all_processes_together(run, tokenizer, monkeypatch):
    flops = training_flops_per_token(run.model, tokenizer.vocab_size)
    monkeypatch.setattr(lm.training.loop, "peak_flops", lambda device, precision: 100.0 * flops)
    monkeypatch.setattr(lm.training.loop, "num_processes", lambda: 2)
    loop = SimpleNamespace(config=run, tokenizer=tokenizer, device=torch.device("cuda"))
    assert TrainingLoop._rates(loop, 1.0, 50.0)["mfu"] == "25.0%"
