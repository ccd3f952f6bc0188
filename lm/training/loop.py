"""The training loop: steps, evaluations and checkpoints.

The configuration, the data and the code determine the result of a run. Random numbers are drawn only to initialize the
weights, and the clock is read only to show rates and times. A run that was interrupted and resumed therefore ends with
the same bits as a run that was not interrupted.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from lm.atomic import write_json
from lm.device import why_not_compile
from lm.errors import UserError
from lm.model.cost import training_flops_per_token
from lm.model.transformer import TransformerLM
from lm.planning.devices import peak_flops
from lm.tokenizer.tokenizer import Tokenizer
from lm.training.batches import batch, window_starts
from lm.training.checkpoint import Checkpoints
from lm.training.config import RunConfig, RuntimeConfig
from lm.training.console import duration, write_line
from lm.training.data import Data
from lm.training.distributed import (
    any_process,
    full_tensor,
    is_first,
    num_processes,
    progress_bar_disabled,
    rank,
    shard,
    wait_for_all,
)
from lm.training.evaluation import DOCUMENT_LOSSES, DocumentLosses, greedy_continuation, mean_loss
from lm.training.history import History, Progress
from lm.training.initial_model import load_initial_model
from lm.training.interruption import Interruption
from lm.training.metrics import evaluation_row, run_metrics, write_curve
from lm.training.optimizer import make_optimizer
from lm.training.schedule import learning_rate
from lm.training.tracking import Log
from lm.training.train_step import TrainStep

_TIMED_STEPS = 3  # for the estimate of the remaining time; the step before them may compile and is not counted

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class OutputPaths:
    """The folders and files that a run writes while it trains."""

    checkpoints: Path  # folder
    tracking: Path  # folder
    curve: Path  # CSV file with one row per evaluation
    metrics: Path  # JSON file with the metrics of the last evaluation


@dataclass(frozen=True, kw_only=True)
class Result:
    """The outcome of a run: the model and the metrics of its last evaluation.

    `timing` holds the seconds that the loop took, and the tokens per second of its steps.
    """

    model: TransformerLM
    history: History
    metrics: dict[str, float]
    timing: dict[str, float]


class TrainingLoop:
    """The state of one run (model, optimizer and progress), and the loop that advances it."""

    def __init__(
        self,
        config: RunConfig,
        data: Data,
        tokenizer: Tokenizer,
        runtime: RuntimeConfig,
        device: torch.device,
        checkpoints: Checkpoints,
        paths: OutputPaths,
        report: Report,
    ) -> None:
        self.config, self.data, self.tokenizer, self.runtime = config, data, tokenizer, runtime
        self.device, self.checkpoints, self.paths, self.report = device, checkpoints, paths, report
        torch.manual_seed(config.train.seed)
        self.model = TransformerLM(
            config.model, tokenizer.vocab_size, runtime.attention_backend, runtime.checkpoint_activations
        ).to(device)
        if config.train.initial_model != "none":
            self.model.load_state_dict(load_initial_model(config, tokenizer).state_dict())
        if runtime.parallelism == "fsdp" and num_processes() > 1:
            shard(self.model, device)
        self.optimizer = make_optimizer(self.model, config.optim)
        reason = why_not_compile(device) if runtime.compile else None
        if reason:
            write_line(f"runtime.compile: training without torch.compile: {reason}")
        self.train_step = TrainStep(
            self.model,
            self.optimizer,
            precision=config.train.precision,
            max_grad_norm=config.optim.max_grad_norm,
            document_separator=tokenizer.end_of_text_id if config.train.document_mask else None,
            compile=runtime.compile and not reason,
        )
        self.starts = window_starts(
            data.train, config.train.windows, config.model.context_length, tokenizer.end_of_text_id
        )
        self.document_losses = DocumentLosses(data, tokenizer)
        self.progress = checkpoints.restore(self.model, self.optimizer) or Progress(step=0, history=[], losses=[])
        self.saved_step = self.progress.step
        if self.progress.history:
            write_line(f"resuming from step {self.progress.step} of {config.train.max_steps} ({checkpoints.folder})")
            self._write_history()

    def run(self, interruption: Interruption, log: Log) -> Result:
        """Train to the end, or until the loss is no longer finite."""
        progress, max_steps = self.progress, self.config.train.max_steps
        started = time.perf_counter()
        step_seconds: list[float] = []  # without evaluations and checkpoints
        total_seconds = tokens_per_second = 0.0
        tokens_before = self.config.num_tokens(progress.step)  # in an earlier process
        finite = progress.history[-1]["val_loss"] is not None if progress.history else self._evaluate(None, log)
        bar = tqdm(
            total=max_steps,
            initial=progress.step,
            desc="training",
            unit="step",
            leave=False,
            disable=progress_bar_disabled(),
        )
        with bar:
            while finite and progress.step < max_steps:
                step_started = time.perf_counter()
                loss, norm = self._take_step(progress.step + 1)
                step_seconds.append(time.perf_counter() - step_started)
                total_seconds += step_seconds[-1]
                finite = self._record_step(loss, norm)
                if not finite:
                    break
                tokens_per_second = (self.config.num_tokens(progress.step) - tokens_before) / total_seconds
                log(progress.step, {"train_loss": loss, "grad_norm": norm, "tokens_per_second": tokens_per_second})
                if len(step_seconds) == 1 + _TIMED_STEPS:
                    remaining = (max_steps - progress.step) * sum(step_seconds[1:]) / _TIMED_STEPS
                    self.report(f"about {duration(remaining)} left, not counting evaluations")
                if progress.step % self.config.train.eval_every == 0 or progress.step == max_steps:
                    finite = self._evaluate(norm, log)
                elif progress.step % self.runtime.checkpoint_every == 0:
                    self._save()
                bar.set_postfix(self._rates(loss, tokens_per_second))
                bar.update()
                if progress.step < max_steps and any_process(interruption.requested):
                    self._stop()
        if not finite:
            self._return_to_last_evaluation()
        return Result(
            model=self._full_model(),
            history=self.progress.history,
            metrics=self._metrics(diverged=not finite),
            timing={"seconds": time.perf_counter() - started, "tokens_per_second": tokens_per_second},
        )

    def _take_step(self, step: int) -> tuple[float, float]:
        """Train on this process's share of the batch of `step` = 1, 2, ...; returns the loss and the gradient norm."""
        config = self.config
        length, repeats = config.window(step)
        # In units of batches of this length; the long windows continue where the short ones have stopped in an epoch.
        index = step - 1
        if step > config.short_steps:
            index += config.short_steps * (config.num_short_windows - 1)
        size = repeats * config.train.batch_size
        rows = batch(self.data.train, self.starts, index, size, length, config.train.seed)
        inputs, targets = (ids.chunk(num_processes())[rank()] for ids in rows)
        micro_batch_size = repeats * self.runtime.micro_batch_size
        rate = learning_rate(step, config.optim, config.train.max_steps)
        return self.train_step(inputs, targets, rate, micro_batch_size)

    def _record_step(self, loss: float, norm: float) -> bool:
        """Count a step and its loss; returns False if the step is not finite and may not be skipped."""
        progress, max_skipped_steps = self.progress, self.config.train.max_skipped_steps
        if math.isfinite(loss) and math.isfinite(norm):
            progress.losses.append(loss)
        elif progress.skipped_steps < max_skipped_steps:
            progress.skipped_steps += 1
            self.report(
                f"step {progress.step + 1}: skipped, because the loss or the gradient is not finite "
                f"({progress.skipped_steps} of at most {max_skipped_steps} skipped steps)"
            )
        else:
            return False
        progress.step += 1
        return True

    def _evaluate(self, grad_norm: float | None, log: Log) -> bool:
        """Evaluate the model, write the curve and the metrics, and save a checkpoint.

        Returns whether the loss is finite. If it is not, nothing is written or saved, except at step 0, because a run
        that diverges immediately returns to it.
        """
        config, progress, data = self.config.train, self.progress, self.data
        self.model.eval()
        batch_size = self.runtime.micro_batch_size or config.batch_size
        end_of_text = self.tokenizer.end_of_text_id
        val_loss = mean_loss(
            self.model, data.val, end_of_text, batch_size, self.device, config.precision, config.document_mask
        )
        is_short = max(1, progress.step) <= self.config.short_steps and progress.step < config.max_steps
        max_length = config.short_context_length if is_short else None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            document_losses = self.document_losses(self.model, max_length)
        continuation = greedy_continuation(self.model, self.tokenizer, config.prompt, self.device)
        self.model.train()
        finite = math.isfinite(val_loss)
        if not finite and progress.step > 0:
            return False
        row = evaluation_row(self.config, data, progress, val_loss, document_losses, grad_norm, continuation)
        progress.history.append(row)
        progress.losses = []
        names = "val_loss", "train_loss", "later_name_nats"
        losses = [f"{name.replace('_', ' ')} {row[name]:.4f}" for name in names if row[name]]
        self.report(", ".join([f"step {progress.step}", *losses]))
        shown = "val_loss", "val_bits_per_byte", *DOCUMENT_LOSSES, "learning_rate"
        log(progress.step, {name: row[name] for name in shown})
        self._save()
        self._write_history()
        return finite

    def _save(self) -> None:
        self.checkpoints.save(self.model, self.optimizer, self.progress)
        self.saved_step = self.progress.step

    def _stop(self) -> None:
        """Save a checkpoint and raise KeyboardInterrupt."""
        if self.saved_step != self.progress.step:
            self._save()
        self.checkpoints.wait()
        write_line(
            f"interrupted: step {self.progress.step} of {self.config.train.max_steps} is saved; run the same command "
            "to resume"
        )
        wait_for_all()  # `launch` stops all processes when one exits, and none may exit before the first prints this
        raise KeyboardInterrupt

    def _return_to_last_evaluation(self) -> None:
        last_step = self.progress.step
        progress = self.checkpoints.restore(self.model, self.optimizer, evaluated=True)
        if progress is None:
            raise UserError(
                f"{self.checkpoints.folder}: the loss is not finite, and the checkpoint of the last evaluation, which "
                "the run would end with, is missing; run again"
            )
        self.progress = progress
        self.report(
            f"the loss is not finite after step {last_step}: the run ends with the model of its last evaluation, at "
            f"step {progress.step}; try a lower optim.max_learning_rate, more optim.warmup_steps or a lower "
            "optim.max_grad_norm"
        )

    def _full_model(self) -> TransformerLM:
        """The model with all its weights, gathered from all processes if they are sharded."""
        if self.runtime.parallelism == "ddp" or num_processes() == 1:
            return self.model
        model = TransformerLM(self.config.model, self.tokenizer.vocab_size)
        with torch.no_grad():
            for full, sharded in zip(model.parameters(), self.model.parameters(), strict=True):
                full.copy_(full_tensor(sharded))
        return model

    def _write_history(self) -> None:
        if is_first():
            write_curve(self.progress.history, self.paths.curve)
            write_json(self.paths.metrics, self._metrics())

    def _metrics(self, diverged: bool = False) -> dict[str, float]:
        return run_metrics(self.config, self.data, self.tokenizer.vocab_size, self.progress, diverged)

    def _rates(self, loss: float, tokens_per_second: float) -> dict[str, str]:
        """What the progress bar shows."""
        shown = {"loss": f"{loss:.3f}", "tokens/s": f"{tokens_per_second:,.0f}"}
        if peak := peak_flops(self.device, self.config.train.precision):
            flops = training_flops_per_token(self.config.model, self.tokenizer.vocab_size)
            shown["mfu"] = f"{tokens_per_second * flops / (num_processes() * peak):.1%}"
        return shown
