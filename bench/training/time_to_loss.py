"""How soon this project reaches the loss at which the best of the others ends, given equal time on the same data.

    python -m bench.training.time_to_loss --data FILE [--seconds 120] [--nanogpt DIR] [--out DIR]

The text is split by documents, a BPE tokenizer with 2,048 tokens is trained on its train part, and every system trains
on that for the same time, on this machine's CPU. The others are the Llama and the GPT-2 of transformers, and nanoGPT if
a checkout is given. They have as many parameters as ours, within 2%. All train in float32, compiled or not, whichever
is faster: the others with PyTorch's fused AdamW and a cosine schedule after a warmup, with each of three learning
rates; ours with everything that helped on TinyStories (see bench/README.md), which is Muon, QK-norm, document masking,
a late decay of the learning rate, and short windows during the first quarter of the steps.

A measurement beforehand determines how many steps fit into the time. Because a schedule ends with its training, ours is
also trained for a part of the time. The curves show bits per byte of the whole val split over the seconds of training
only; the seconds of the first step, which compiles, are reported separately.
"""

import argparse
import dataclasses
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tqdm import tqdm

from bench.common.arguments import add_checkout, add_json, check_checkout, make_json_folder, make_parser
from bench.common.jobs import NotMeasured, run_job
from bench.common.models import attentions
from bench.common.shapes import OPTIM, SHAPES
from bench.common.tables import OURS, Problem, machine, not_measured
from bench.training.curves import Training, curves_csv, draw, report
from lm.atomic import make_folder, write_json, write_text
from lm.corpus.config import END_OF_TEXT
from lm.errors import UserError, exit_cleanly
from lm.model.cost import parameters
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokenizer.training.bpe import train_bpe

_LEARNING_RATES = [1e-3, 3e-3, 1e-2]  # of the others
_BATCH_SIZE = 8
_WARMUP = 0.02  # share of the steps, of the others
_OUR_DECAY = 0.2  # share of the steps
_OUR_SHARES = [0.4, 1.0]  # of the time
_NUM_EVALUATIONS = 12
_VAL_BYTES = 200_000
_MAX_VAL_FRACTION = 0.05
_SPEED_SECONDS = 5.0
_SPEED_TIMEOUT = 900.0
_TOLERANCE = 0.02  # relative to the number of parameters
_TIMEOUT_FACTOR = 5  # a training of S seconds may take this many times S, plus ten minutes to compile

_SHAPE = SHAPES["0.8m"]
# Sizes that give GPT-2 (tied head, learned positions) and nanoGPT (the same without biases) as many parameters.
MODELS = {
    "transformers": _SHAPE.model,
    "gpt2": dataclasses.replace(_SHAPE.model, d_model=112, d_ff=416, tie_embeddings=True),
    "nanogpt": dataclasses.replace(_SHAPE.model, d_model=110, num_heads=5, num_kv_heads=5, tie_embeddings=True),
}


def main() -> None:
    args = parse_arguments()
    jobs = [our_job()]
    jobs += [their_job(name, args.nanogpt) for name in MODELS if name != "nanogpt" or args.nanogpt]
    make_folder(args.out)
    make_json_folder(args.json)
    trainings: list[Training] = []
    problems: list[Problem] = []
    total = len(_OUR_SHARES) + (len(jobs) - 1) * len(_LEARNING_RATES)
    with TemporaryDirectory() as folder, tqdm(total=total, unit="training", disable=None) as bar:
        data = write_data(args.data, Path(folder))
        try:
            for job in jobs:
                is_ours = job["system"] == OURS
                trials = [(None, share) for share in _OUR_SHARES] if is_ours else [(r, 1.0) for r in _LEARNING_RATES]
                try:
                    job, steps = choose_fastest(job | data, args.seconds)
                    for rate, share in trials:
                        bar.set_postfix_str(f"{job['system']} {rate or 'ours'}")
                        trainings.append(train(job, rate, round(share * steps), share * args.seconds))
                        bar.update()
                        write_text(args.out / "curves.csv", curves_csv(trainings))
                        if args.json:
                            write_json(args.json, trainings)
                except NotMeasured as error:
                    problems.append(Problem(job["system"], str(error)))
        finally:  # also after Ctrl-C
            print("\n".join([f"{machine()}.", "", *report(trainings), *not_measured(problems)]))
    draw(trainings, args.out / "curves.png")


def parse_arguments() -> argparse.Namespace:
    parser = make_parser("bench.training.time_to_loss", __doc__)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FILE", help=f"a text whose documents end with {END_OF_TEXT}"
    )
    parser.add_argument("--seconds", type=float, default=120.0, metavar="S", help="per training; default: 120")
    add_checkout(parser, "nanogpt", "model.py")
    parser.add_argument(
        "--out", type=Path, default=Path("time-to-loss"), metavar="DIR", help="for curves.csv and curves.png"
    )
    add_json(parser)
    args = parser.parse_args()
    if not args.seconds > 0:
        raise UserError(f"--seconds: expected a positive number, got {args.seconds}")
    check_checkout("nanogpt", args.nanogpt, "model.py")
    return args


def our_job() -> dict[str, Any]:
    """Return our settings; `compile` and `attention` list the choices that `choose_fastest` tries."""
    optim = dataclasses.replace(
        OPTIM,
        optimizer="muon",
        max_learning_rate=0.02,
        min_learning_rate=1e-5,
        schedule="wsd",
        warmup_steps=20,
        decay_shape="1-sqrt",
    )
    return {
        "system": OURS,
        "checkout": None,
        "model": asdict(dataclasses.replace(_SHAPE.model, qk_norm=True)),
        "optim": asdict(optim),
        "dtype": "float32",
        "batch_size": _BATCH_SIZE,
        "document_mask": True,
        "windows": "stream",
        "short_fraction": 0.25,
        "short_context_length": 64,
        "compile": [True, False],
        "attention": attentions(OURS, "cpu"),
    }


def their_job(system: str, nanogpt: Path | None) -> dict[str, Any]:
    """Return the settings of another system; `nanogpt` is the folder of a checkout."""
    return {
        "system": system,
        "checkout": str(nanogpt.absolute()) if nanogpt and system == "nanogpt" else None,
        "model": asdict(MODELS[system]),
        "optim": asdict(dataclasses.replace(OPTIM, schedule="cosine", min_learning_rate=0.0)),
        "dtype": "float32",
        "batch_size": _BATCH_SIZE,
        "compile": [True, False],
        "attention": attentions(system, "cpu"),
        "windows": "stream",
        "short_fraction": 0.0,
        "short_context_length": _SHAPE.context_length,
    }


def write_data(path: Path, folder: Path) -> dict[str, Any]:
    """Split a text, train a tokenizer, and write the token ids of both splits; return what a job says about them.

    Raises:
        UserError: the text cannot be read, is not UTF-8, or has fewer than two documents.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise UserError(f"--data: {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--data: {path}: is not UTF-8 at byte {error.start}") from error
    documents = [document for document in text.split(END_OF_TEXT) if document.strip()]
    if len(documents) < 2:
        raise UserError(f"--data: {path}: expected documents that end with {END_OF_TEXT}, got {len(documents)}")
    sizes = [len(document.encode()) for document in documents]
    wanted, held_out = min(_VAL_BYTES, _MAX_VAL_FRACTION * sum(sizes)), 0
    first_val = len(documents)
    while held_out < wanted and first_val > 1:
        first_val -= 1
        held_out += sizes[first_val]
    splits = {"train": documents[:first_val], "val": documents[first_val:]}
    texts = {name: "".join(document + END_OF_TEXT for document in split) for name, split in splits.items()}
    (folder / "train.txt").write_bytes(texts["train"].encode())
    tokenizer = Tokenizer(*train_bpe(folder / "train.txt", _SHAPE.vocab_size, [END_OF_TEXT]), [END_OF_TEXT])
    for name, split_text in texts.items():
        np.save(folder / f"{name}.npy", tokenizer.encode_array(split_text))
    return {
        "tokens": str(folder / "train.npy"),
        "val_tokens": str(folder / "val.npy"),
        "val_text_bytes": held_out,
        "vocab_size": _SHAPE.vocab_size,
        "end_of_text_id": tokenizer.end_of_text_id,
    }


def choose_fastest(job: dict[str, Any], seconds: float) -> tuple[dict[str, Any], int]:
    """Measure every combination of `compile` and `attention` that a job lists.

    Returns:
        The job with the fastest combination, and the number of steps that fit into `seconds`.

    Raises:
        NotMeasured: every combination fails, or the number of parameters is wrong.
    """
    choices = [{"compile": compiled, "attention": name} for compiled in job["compile"] for name in job["attention"]]
    shared = job | {"task": "training", "device": "cpu", "allocator": "tuned", "seconds": _SPEED_SECONDS}
    measured: list[tuple[dict[str, Any], dict[str, Any]]] = []
    failures: list[NotMeasured] = []
    for choice in choices:
        try:
            measured.append((run_job("bench.training.measure", shared | choice, _SPEED_TIMEOUT), choice))
        except NotMeasured as error:  # without a compiler, the rest can still be measured
            failures.append(error)
    if not measured:
        raise failures[0]
    speed, choice = min(measured, key=lambda pair: pair[0]["seconds_per_step"])
    expected = sum(parameters(_SHAPE.model, _SHAPE.vocab_size).values())
    if job["system"] != OURS and abs(speed["parameters"] - expected) > _TOLERANCE * expected:
        raise NotMeasured(f"has {speed['parameters']:,} parameters, not the {expected:,} of ours")
    return job | choice, max(_NUM_EVALUATIONS, round(seconds / speed["seconds_per_step"]))


def train(job: dict[str, Any], rate: float | None, steps: int, seconds: float) -> Training:
    """Train once in a fresh process.

    `rate` is the maximum learning rate of one of the others; ours has its own.

    Raises:
        NotMeasured: the training failed.
    """
    optim = job["optim"]
    if rate is None:
        optim = optim | {"decay_steps": round(_OUR_DECAY * steps)}
    else:
        optim = optim | {"max_learning_rate": rate, "warmup_steps": round(_WARMUP * steps)}
    whole_job = job | {"optim": optim, "steps": steps, "points": _NUM_EVALUATIONS}
    learned = run_job("bench.training.measure_curve", whole_job, _TIMEOUT_FACTOR * seconds + 600)
    settings = {name: job[name] for name in ("system", "batch_size", "dtype", "compile", "attention")}
    return settings | {"learning_rate": optim["max_learning_rate"], "steps": steps} | learned


if __name__ == "__main__":
    exit_cleanly(main)
