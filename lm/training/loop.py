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

from lm.atomic import write_json, write_text
from lm.device import check_precision, keep_freed_memory, peak_flops, pick_device, why_not_compile
from lm.errors import UserError
from lm.model.config import ModelConfig
from lm.model.cost import parameters, training_flops_per_token
from lm.model.files import load_model, weights_hash
from lm.model.transformer import TransformerLM
from lm.tokenizer.tokenizer import Tokenizer
from lm.training.batches import batch, num_windows
from lm.training.checkpoint import Checkpoints, History, Progress, fingerprint
from lm.training.config import OptimConfig, RuntimeConfig, TrainConfig
from lm.training.data import Data
from lm.training.distributed import (
    any_process,
    full_tensor,
    is_first,
    num_processes,
    process_group,
    rank,
    shard,
    wait_for_all,
)
from lm.training.evaluation import greedy_continuation, mean_loss
from lm.training.interruption import Interruption
from lm.training.optimizer import make_optimizer
from lm.training.plan import duration, plan
from lm.training.schedule import learning_rate
from lm.training.tracking import Log, tracker
from lm.training.train_step import TrainStep

_PROBE_STEPS = 3  # timed, after a first one that compiles, for the time to go


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The configuration of a training; with `Data` and the code, all that determines its result."""

    model: ModelConfig
    optim: OptimConfig
    train: TrainConfig


@dataclass(frozen=True, kw_only=True)
class OutputPaths:
    """What a training writes while it runs: two folders, and the two files that grow with every evaluation."""

    checkpoints: Path
    tracking: Path
    curve: Path  # CSV, a row an evaluation
    metrics: Path  # JSON, of the last evaluation


@dataclass(frozen=True, kw_only=True)
class Result:
    """`model` and `metrics` are of the last evaluation, which on divergence lies before the end."""

    model: TransformerLM
    history: History
    metrics: dict[str, float]
    timing: dict[str, float]


def train(
    run: RunConfig,
    data: Data,
    tokenizer: Tokenizer,
    runtime: RuntimeConfig,
    files: OutputPaths,
    write: Callable[[Result], None],
) -> None:
    """Train from random weights or `train.initial_model`, or go on where an interrupted, otherwise equal run ended.

    All processes of a run call this; `write`, which saves what is to last of the result, is called in the first one
    alone. The checkpoints are deleted after it. A loss that is not finite ends the run early, unless
    `train.max_skipped_steps` allows to leave the step out: the model of the last evaluation is the result, and the
    metrics say `diverged`.

    Raises:
        UserError: an initial model that is another than `model` says, too little text, no such device, too little
            memory, an unwritable folder, a full disk, or the same run is under way.
        KeyboardInterrupt: Ctrl-C; the step under way was finished and saved.
    """
    _check(run, data)
    keep_freed_memory()
    device = pick_device(runtime.device)
    check_precision(device, run.train.precision)
    _ = _initial_model(run, tokenizer)
    facts = dataclasses.asdict(run)
    if run.train.initial_model != "none":
        facts["initial_hash"] = weights_hash(Path(run.train.initial_model))
    name = fingerprint(run=facts, tokens=data.identity, tokenizer=tokenizer.hash, device=device.type)
    with process_group(device) as device, Interruption() as interruption:
        folder = files.checkpoints / name
        needs = plan(run.model, tokenizer.vocab_size, run.optim, run.train, runtime, device, folder, num_processes())
        print(needs)
        needs.check()
        with Checkpoints(files.checkpoints, name, runtime.keep_checkpoints) as checkpoints:
            training = _Training(run, data, tokenizer, runtime, device, checkpoints, files)
            tracking = runtime.tracking if is_first() else "none"
            last = training.progress.step if training.progress.history else -1  # whose points stand
            with tracker(tracking, files.tracking, name, facts, last) as log:
                result = training.result(interruption, log)
            checkpoints.wait()
            if is_first():
                write(result)
            checkpoints.finish()


class _Training:
    """One run's state: model, optimizer and progress."""

    def __init__(
        self,
        run: RunConfig,
        data: Data,
        tokenizer: Tokenizer,
        runtime: RuntimeConfig,
        device: torch.device,
        checkpoints: Checkpoints,
        files: OutputPaths,
    ) -> None:
        self.run, self.data, self.tokenizer, self.runtime = run, data, tokenizer, runtime
        self.device, self.checkpoints, self.files = device, checkpoints, files
        torch.manual_seed(run.train.seed)
        self.model = TransformerLM(
            run.model, tokenizer.vocab_size, runtime.attention_backend, runtime.checkpoint_activations
        ).to(device)
        if initial := _initial_model(run, tokenizer):
            self.model.load_state_dict(initial.state_dict())
        del initial
        if runtime.parallelism == "fsdp" and num_processes() > 1:
            shard(self.model, device)
        self.optimizer = make_optimizer(self.model, run.optim)
        reason = why_not_compile(device) if runtime.compile else None
        if reason:
            print(f"runtime.compile: going on without torch.compile: {reason}")
        self.update = TrainStep(
            self.model,
            self.optimizer,
            precision=run.train.precision,
            max_grad_norm=run.optim.max_grad_norm,
            document_separator=tokenizer.end_of_text_id if run.train.document_mask else None,
            micro_batch_size=runtime.micro_batch_size,
            compile=runtime.compile and not reason,
        )
        self.progress = checkpoints.restore(self.model, self.optimizer) or Progress(step=0, history=[], losses=[])
        self.saved_step = self.progress.step
        if self.progress.history:
            print(f"going on from step {self.progress.step} of {run.train.max_steps} ({checkpoints.folder})")
            self._write_history()

    def result(self, interruption: Interruption, log: Log) -> Result:
        progress, max_steps = self.progress, self.run.train.max_steps
        started, tokens_before = time.perf_counter(), self._tokens_seen()
        updating = tokens_per_second = 0.0  # evaluations and checkpoints are left out of the rate
        durations: list[float] = []
        finite = progress.history[-1]["val_loss"] is not None if progress.history else self._evaluate(None, log)
        with tqdm(total=max_steps, initial=progress.step, desc="training", unit="step", disable=not is_first()) as bar:
            while finite and progress.step < max_steps:
                update_started = time.perf_counter()
                loss, norm = self._update(progress.step + 1)
                durations.append(time.perf_counter() - update_started)
                updating += durations[-1]
                finite = self._count(loss, norm)
                if not finite:
                    break
                tokens_per_second = (self._tokens_seen() - tokens_before) / updating
                log(progress.step, {"train_loss": loss, "grad_norm": norm, "tokens_per_second": tokens_per_second})
                if len(durations) == 1 + _PROBE_STEPS:
                    left = (max_steps - progress.step) * sum(durations[1:]) / _PROBE_STEPS
                    tqdm.write(f"about {duration(left)} to go, evaluations apart")
                if progress.step % self.run.train.eval_every == 0 or progress.step == max_steps:
                    finite = self._evaluate(norm, log)
                elif progress.step % self.runtime.checkpoint_every == 0:
                    self._save()
                bar.set_postfix(self._rates(loss, tokens_per_second))
                bar.update()
                if progress.step < max_steps and any_process(interruption.requested):
                    self._stop()
        if not finite:
            self._step_back()
        return Result(
            model=self._whole_model(),
            history=self.progress.history,
            metrics=self._metrics(diverged=not finite),
            timing={"seconds": time.perf_counter() - started, "tokens_per_second": tokens_per_second},
        )

    def _count(self, loss: float, norm: float) -> bool:
        """Take in what an update gave; false if it ends the run, as it is not finite and no more may be left out."""
        progress = self.progress
        if math.isfinite(loss) and math.isfinite(norm):
            progress.losses.append(loss)
        elif progress.skipped_steps < self.run.train.max_skipped_steps:
            progress.skipped_steps += 1
            tqdm.write(
                f"step {progress.step + 1}: the loss or its gradient is not finite, and the update is left out "
                f"({progress.skipped_steps} of at most {self.run.train.max_skipped_steps})"
            )
        else:
            return False
        progress.step += 1
        return True

    def _save(self) -> None:
        self.checkpoints.save(self.model, self.optimizer, self.progress)
        self.saved_step = self.progress.step

    def _stop(self) -> None:
        """Save, and end as Ctrl-C does."""
        if self.saved_step != self.progress.step:
            self._save()
        self.checkpoints.wait()
        tqdm.write(
            f"interrupted: step {self.progress.step} of {self.run.train.max_steps} is saved; run the same command to "
            "go on from there"
        )
        wait_for_all()  # the first process to end would end the others, before that is said
        raise KeyboardInterrupt

    def _whole_model(self) -> TransformerLM:
        """The model, put together if it is sharded."""
        if self.runtime.parallelism == "ddp" or num_processes() == 1:
            return self.model
        model = TransformerLM(self.run.model, self.tokenizer.vocab_size)
        with torch.no_grad():
            for together, weight in zip(model.parameters(), self.model.parameters(), strict=True):
                together.copy_(full_tensor(weight))
        return model

    def _step_back(self) -> None:
        failed = self.progress.step
        self.progress = self.checkpoints.restore(self.model, self.optimizer, evaluated=True)
        tqdm.write(
            f"the loss is not finite after step {failed}: the run ends with the model of its last evaluation, at step "
            f"{self.progress.step}; try a lower optim.max_learning_rate, more optim.warmup_steps or a lower "
            "optim.max_grad_norm"
        )

    def _update(self, step: int) -> tuple[float, float]:
        """Update number `step` = 1, 2, ... with this process's share of the batch; returns loss and gradient norm."""
        run = self.run
        rows = batch(self.data.train, step - 1, run.train.batch_size, run.model.context_length, run.train.seed)
        inputs, targets = (ids.chunk(num_processes())[rank()] for ids in rows)
        return self.update(inputs, targets, learning_rate(step, run.optim, run.train.max_steps))

    def _evaluate(self, grad_norm: float | None, log: Log) -> bool:
        """Measure, add a row to the history and the files, save this state; false if nothing is finite.

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
        log(progress.step, {name: row[name] for name in ("val_loss", "val_bits_per_byte", "learning_rate")})
        self._save()
        self._write_history()
        return finite

    def _write_history(self) -> None:
        """The CSV and the metrics so far, for whoever watches."""
        if is_first():
            write_curve(self.progress.history, self.files.curve)
            write_json(self.files.metrics, self._metrics(diverged=False))

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
            "diverged": int(diverged or last["val_loss"] is None or last["val_loss"] > first),
            "skipped_steps": self.progress.skipped_steps,
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


def _initial_model(run: RunConfig, tokenizer: Tokenizer) -> TransformerLM | None:
    """The model of `train.initial_model`, if there is one, which must be of the shape that the run asks for."""
    if run.train.initial_model == "none":
        return None
    folder = Path(run.train.initial_model)
    if not folder.is_dir():
        raise UserError(
            f"train.initial_model: there is no folder {folder}; expected none or the folder of a model, not of this "
            "stage itself, which is deleted before it runs"
        )
    try:
        model = load_model(folder, tokenizer.hash)
    except UserError as error:
        raise UserError(f"train.initial_model: {error}") from error
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise UserError(f"train.initial_model: {folder} has weights that are not finite; its training diverged")
    asked, given = dataclasses.asdict(run.model), dataclasses.asdict(model.config)
    different = [f"model.{name}={given[name]}" for name in given if given[name] != asked[name]]
    if different:
        raise UserError(
            f"train.initial_model: {folder} is another model than params.yaml says; set {' '.join(different)}"
        )
    return model


def _check(run: RunConfig, data: Data) -> None:
    length = run.model.context_length
    if num_windows(len(data.train), length) < 1:
        raise UserError(
            f"model.context_length: a window takes {length + 1} tokens, and the train split has {len(data.train)}; "
            "take more text (data.train_bytes) or a shorter context"
        )
    if len(data.val) < 1:
        raise UserError("the val split is empty; raise data.val_bytes or data.val_fraction")
