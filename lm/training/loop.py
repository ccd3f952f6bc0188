"""The training loop: batches, accumulation, clipping, updates, evaluations, checkpoints, and the way back from a kill.

A run is determined by its configuration, tokens and code; nothing here reads a clock or draws a random number after
the weights are initialised. What it returns is therefore the same whether it was interrupted or not.
"""

import csv
import dataclasses
import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from lm.atomic import write_text
from lm.errors import UserError
from lm.model.accounting import parameters, training_flops_per_token
from lm.model.config import ModelConfig
from lm.model.transformer import TransformerLM
from lm.tokenizer.tokenizer import Tokenizer
from lm.training.batches import batch, num_windows
from lm.training.checkpoint import Checkpoints, History, Progress, fingerprint
from lm.training.config import OptimConfig, RuntimeConfig, TrainConfig
from lm.training.data import Data
from lm.training.device import check_precision, keep_freed_memory, peak_flops, pick_device, why_not_compile
from lm.training.evaluation import greedy_continuation, mean_loss
from lm.training.optimizer import make_optimizer
from lm.training.schedule import learning_rate
from lm.training.update import Update


@dataclass(frozen=True, kw_only=True)
class Run:
    """The configuration of a training; with `Data` and the code, all that determines its result."""

    model: ModelConfig
    optim: OptimConfig
    train: TrainConfig


@dataclass(frozen=True, kw_only=True)
class Result:
    """`model` and `metrics` are of the last evaluation, which on divergence lies before the end."""

    model: TransformerLM
    history: History
    metrics: dict[str, float]
    timing: dict[str, float]


def train(
    run: Run,
    data: Data,
    tokenizer: Tokenizer,
    runtime: RuntimeConfig,
    checkpoints_root: Path,
    curve: Path,
    write: Callable[[Result], None],
) -> None:
    """Train from scratch, or go on from the checkpoint that an interrupted, otherwise equal run left.

    `curve` is the CSV that holds a row an evaluation; it grows while the run goes on. `write` saves what is to last of
    the result; the checkpoints are deleted after it. A loss that is not finite ends the run early: the model of the
    last evaluation is the result, and the metrics say `diverged`.

    Raises:
        UserError: too little text, no such device, an unwritable folder, a full disk, or the same run is under way.
    """
    _check(run, data)
    keep_freed_memory()
    device = pick_device(runtime.device)
    check_precision(device, run.train.precision)
    name = fingerprint(run=dataclasses.asdict(run), tokens=data.identity, tokenizer=tokenizer.hash, device=device.type)
    with Checkpoints(checkpoints_root, name) as checkpoints:
        write(_Training(run, data, tokenizer, runtime, device, checkpoints, curve).result())
        checkpoints.finish()


class _Training:
    """One run's state: model, optimizer and progress."""

    def __init__(
        self,
        run: Run,
        data: Data,
        tokenizer: Tokenizer,
        runtime: RuntimeConfig,
        device: torch.device,
        checkpoints: Checkpoints,
        curve: Path,
    ) -> None:
        self.run, self.data, self.tokenizer, self.runtime = run, data, tokenizer, runtime
        self.device, self.checkpoints, self.curve = device, checkpoints, curve
        torch.manual_seed(run.train.seed)
        self.model = TransformerLM(
            run.model, tokenizer.vocab_size, runtime.attention_backend, runtime.checkpoint_activations
        ).to(device)
        self.optimizer = make_optimizer(self.model, run.optim)
        self.progress = Progress(step=0, history=[], losses=[])
        reason = why_not_compile(device) if runtime.compile else None
        if reason:
            print(f"runtime.compile: going on without torch.compile: {reason}")
        self.update = Update(
            self.model,
            self.optimizer,
            precision=run.train.precision,
            max_grad_norm=run.optim.max_grad_norm,
            document_separator=tokenizer.end_of_text_id if run.train.document_mask else None,
            micro_batch_size=runtime.micro_batch_size,
            compile=runtime.compile and not reason,
        )
        if path := checkpoints.latest():
            self.progress = checkpoints.restore(path, self.model, self.optimizer)
            print(f"going on from step {self.progress.step} of {run.train.max_steps} ({path})")
            write_curve(self.progress.history, curve)

    def result(self) -> Result:
        progress, max_steps = self.progress, self.run.train.max_steps
        started, tokens_before = time.perf_counter(), self._tokens_seen()
        updating = tokens_per_second = 0.0  # evaluations and checkpoints are left out of the rate
        finite = progress.history[-1]["val_loss"] is not None if progress.history else self._evaluate(None)
        with tqdm(total=max_steps, initial=progress.step, desc="training", unit="step") as bar:
            while finite and progress.step < max_steps:
                update_started = time.perf_counter()
                loss, norm = self._update(progress.step + 1)
                updating += time.perf_counter() - update_started
                finite = math.isfinite(loss) and math.isfinite(norm)
                if not finite:
                    break
                progress.step += 1
                progress.losses.append(loss)
                if progress.step % self.run.train.eval_every == 0 or progress.step == max_steps:
                    finite = self._evaluate(norm)
                elif progress.step % self.runtime.checkpoint_every == 0:
                    self.checkpoints.save(self.checkpoints.newest, self.model, self.optimizer, progress)
                tokens_per_second = (self._tokens_seen() - tokens_before) / updating
                bar.set_postfix(self._rates(loss, tokens_per_second))
                bar.update()
        if not finite:
            self._step_back()
        return Result(
            model=self.model,
            history=self.progress.history,
            metrics=self._metrics(diverged=not finite),
            timing={"seconds": time.perf_counter() - started, "tokens_per_second": tokens_per_second},
        )

    def _step_back(self) -> None:
        failed = self.progress.step
        self.progress = self.checkpoints.restore(self.checkpoints.evaluated, self.model, self.optimizer)
        tqdm.write(
            f"the loss is not finite after step {failed}: the run ends with the model of its last evaluation, at step "
            f"{self.progress.step}; try a lower optim.max_learning_rate, more optim.warmup_steps or a lower "
            "optim.max_grad_norm"
        )

    def _update(self, step: int) -> tuple[float, float]:
        """Update number `step` = 1, 2, ...; returns loss and gradient norm."""
        run = self.run
        inputs, targets = batch(
            self.data.train, step - 1, run.train.batch_size, run.model.context_length, run.train.seed
        )
        return self.update(inputs, targets, learning_rate(step, run.optim, run.train.max_steps))

    def _evaluate(self, grad_norm: float | None) -> bool:
        """Measure, add a row to the history and the CSV, keep this state as a checkpoint; false if nothing is finite.

        The state of step 0 is kept in any case: it is what a run falls back on that diverges at once.
        """
        config, progress, data = self.run.train, self.progress, self.data
        self.model.eval()
        batch_size = self.runtime.micro_batch_size or config.batch_size
        end_of_text = self.tokenizer.end_of_text_id
        val_loss = mean_loss(
            self.model, data.val, end_of_text, batch_size, self.device, config.precision, config.document_mask
        )
        continuation = greedy_continuation(self.model, self.tokenizer, config.prompt, self.device)
        self.model.train()
        finite = math.isfinite(val_loss)
        if not finite and progress.step > 0:
            return False
        row = {
            "step": progress.step,
            "learning_rate": learning_rate(progress.step, self.run.optim, config.max_steps),
            "train_loss": sum(progress.losses) / len(progress.losses) if progress.losses else None,
            "val_loss": val_loss if finite else None,
            "val_bits_per_byte": val_loss * len(data.val) / math.log(2) / data.val_text_bytes if finite else None,
            "grad_norm": grad_norm,
            # As within a JSON string: whatever an untrained model says, a row of the CSV stays one line.
            "continuation": json.dumps(continuation, ensure_ascii=False)[1:-1],
        }
        progress.history.append(row)
        progress.losses = []
        losses = [f"{name.replace('_', ' ')} {row[name]:.4f}" for name in ("val_loss", "train_loss") if row[name]]
        tqdm.write(", ".join([f"step {progress.step}", *losses]))
        self.checkpoints.save(self.checkpoints.evaluated, self.model, self.optimizer, progress)
        write_curve(progress.history, self.curve)
        return finite

    def _tokens_seen(self) -> int:
        return self.progress.step * self.run.train.batch_size * self.run.model.context_length

    def _rates(self, loss: float, tokens_per_second: float) -> dict[str, str]:
        shown = {"loss": f"{loss:.3f}", "tokens/s": f"{tokens_per_second:,.0f}"}
        if peak := peak_flops(self.device, self.run.train.precision):
            flops = training_flops_per_token(self.run.model, self.tokenizer.vocab_size)
            shown["mfu"] = f"{tokens_per_second * flops / peak:.1%}"
        return shown

    def _metrics(self, diverged: bool) -> dict[str, float]:
        first, last = self.progress.history[0]["val_loss"], self.progress.history[-1]
        metrics = {
            "step": self.progress.step,
            "tokens": self._tokens_seen(),
            "num_parameters": sum(parameters(self.run.model, self.tokenizer.vocab_size).values()),
            "diverged": int(diverged or last["val_loss"] > first),
            "train_loss": last["train_loss"],
            "val_loss": last["val_loss"],
            "val_bits_per_byte": last["val_bits_per_byte"],
        }
        if last["val_loss"] is not None and last["val_loss"] < 700:  # exp of more is infinite, and JSON has no infinity
            metrics["val_perplexity"] = math.exp(last["val_loss"])
        if self.data.val_entropy_bits is not None:
            floor = self.data.val_entropy_bits / self.data.val_text_bytes
            metrics["floor_bits_per_byte"] = floor
            if last["val_bits_per_byte"] is not None:
                metrics["val_bits_per_byte_above_floor"] = last["val_bits_per_byte"] - floor
        return {name: value for name, value in metrics.items() if value is not None}


def write_curve(history: History, path: Path) -> None:
    """A CSV row an evaluation, replaced in one step."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(path, text.getvalue())


def _check(run: Run, data: Data) -> None:
    length = run.model.context_length
    if num_windows(len(data.train), length) < 1:
        raise UserError(
            f"model.context_length: a window takes {length + 1} tokens, and the train split has {len(data.train)}; "
            "take more text (data.train_bytes) or a shorter context"
        )
    if len(data.val) < 1:
        raise UserError("the val split is empty; raise data.val_bytes or data.val_fraction")
