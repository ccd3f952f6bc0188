"""How soon this project reaches the loss at which the best of the others ends, at equal time on the same data.

    python bench/time_to_loss.py --data FILE [--seconds 120] [--preset fast] [--nanogpt DIR] [--out DIR] [--json FILE]

The text is split by documents, a BPE of 2,048 tokens is learned on its train part, and every system learns that for the
same time on this machine's CPU, in float32: transformers' Llama and GPT-2, and nanoGPT if there is a checkout, with the
parameters of params.yaml's model as released to within 2%, PyTorch's fused AdamW, and a cosine after a warm-up, each
with three learning rates, compiled or not, whichever is faster; ours with a preset, in its batch size and precision.
The steps that fit into the time are found by a measurement beforehand. As a schedule ends with its training, ours is
trained for a part of the time, too. The curves show bits a byte of the whole val
split over the seconds of training alone; the seconds of the first step, which compiles, are told apart.
"""

import argparse
import csv
import dataclasses
import io
import shutil
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from comparison import Problem, machine, not_measured
from jobs import NotMeasured, run_job
from shapes import OPTIM, SHAPES
from tqdm import tqdm

from lm import config, preset
from lm.atomic import make_folder, write_json, write_text
from lm.corpus.config import END_OF_TEXT
from lm.errors import UserError, exit_cleanly
from lm.model.cost import parameters
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokenizer.training.bpe import train_bpe

_PARAMS = Path(__file__).resolve().parent.parent / "params.yaml"
_PROBE = Path(__file__).with_name("measure_training.py")
_LEARN = Path(__file__).with_name("measure_learning.py")

_LEARNING_RATES = [1e-3, 3e-3, 1e-2]
_BATCH_SIZE = 8  # of the others, as in params.yaml
_WARM_UP = 0.02  # of the steps
_OUR_PARTS = (0.4, 1.0)  # of the time
_POINTS = 12
_VAL_BYTES = 200_000
_VAL_FRACTION = 0.05  # at most
_PROBE_SECONDS = 5.0
_PROBE_TIMEOUT = 900.0
_TOLERANCE = 0.02  # of the number of parameters
_TIMEOUT_FACTOR = 5  # a training of S seconds is given up after so many times them, and some minutes to compile

_LAPTOP = SHAPES["laptop"]
# Sizes that give GPT-2 (tied head, learned positions) and nanoGPT (the same without biases) as many parameters.
_MODELS = {
    "transformers": _LAPTOP.model,
    "gpt2": dataclasses.replace(_LAPTOP.model, d_model=112, d_ff=416, tie_embeddings=True),
    "nanogpt": dataclasses.replace(_LAPTOP.model, d_model=110, num_heads=5, num_kv_heads=5, tie_embeddings=True),
}

Learned = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FILE", help="text whose documents end as its own do"
    )
    parser.add_argument("--seconds", type=float, default=120.0, metavar="S", help="of each training; default: 120")
    parser.add_argument("--preset", default="fast", metavar="NAME", help="ours; default: fast")
    parser.add_argument("--nanogpt", type=Path, metavar="DIR", help="a checkout of nanoGPT; runs its model.py")
    parser.add_argument("--out", type=Path, default=Path("time-to-loss"), metavar="DIR", help="for curves.csv and .png")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the trainings there")
    args = parser.parse_args()
    if not args.seconds > 0:
        raise UserError(f"--seconds: expected a positive number, got {args.seconds}")
    if args.nanogpt and not (args.nanogpt / "model.py").is_file():
        raise UserError(f"--nanogpt: {args.nanogpt} has no model.py; expected the folder of a checkout")
    ours = our_job(args.preset)
    for folder in [args.out, *([args.json.parent] if args.json else [])]:
        make_folder(folder)

    trainings: list[Learned] = []
    problems: list[Problem] = []
    with TemporaryDirectory() as folder:
        data = write_data(args.data, Path(folder))
        others = {name: {"source": None} for name in ("transformers", "gpt2")}
        others |= {"nanogpt": {"source": str(args.nanogpt.absolute())}} if args.nanogpt else {}
        jobs = [ours] + [their_job(name) | other for name, other in others.items()]
        try:
            with tqdm(total=len(_OUR_PARTS) + len(others) * len(_LEARNING_RATES), unit="training") as bar:
                for job in jobs:
                    of_ours = [(None, part) for part in _OUR_PARTS]
                    trials = of_ours if job["system"] == "lm" else [(rate, 1.0) for rate in _LEARNING_RATES]
                    try:
                        job, steps = probe(job | data, args.seconds)
                        for rate, part in trials:
                            bar.set_postfix_str(f"{job['system']} {rate or args.preset}")
                            trainings.append(learn(job, rate, round(part * steps), part * args.seconds))
                            bar.update()
                            write_text(args.out / "curves.csv", curves(trainings))
                            if args.json:
                                write_json(args.json, trainings)
                    except NotMeasured as error:
                        problems.append(Problem(job["system"], str(error)))
        finally:  # on Ctrl-C too
            print("\n".join([f"{machine()}.", "", *report(trainings), *not_measured(problems)]))
    draw(trainings, args.out / "curves.png")


def our_job(name: str) -> dict[str, Any]:
    """What a preset of params.yaml as released says of model, optimizer and training."""
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "params.yaml"
        shutil.copy(_PARAMS, copy)
        preset.apply("laptop", copy)
        preset.apply(name, copy)
        params = config.load(copy)
    job = {"system": "lm", "source": None, "model": asdict(params.model), "optim": asdict(params.optim)}
    job |= {"dtype": params.train.precision, "batch_size": params.train.batch_size}
    job |= {"document_mask": params.train.document_mask}
    job |= {"decay_fraction": params.optim.decay_steps / params.train.max_steps}
    return job | {"compile": [True, False], "attention": ["reference", "sdpa"]}


def their_job(system: str) -> dict[str, Any]:
    optim = dataclasses.replace(OPTIM, schedule="cosine", min_learning_rate=0.0)
    job = {"system": system, "model": asdict(_MODELS[system]), "optim": asdict(optim), "dtype": "float32"}
    return job | {"batch_size": _BATCH_SIZE, "compile": [True, False], "attention": ["sdpa"]}


def write_data(path: Path, folder: Path) -> dict[str, Any]:
    """Split a text, learn a tokenizer, and write the ids of both parts; what a job says of them.

    Raises:
        UserError: the text cannot be read, is not UTF-8, or has no two documents.
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
    wanted, taken = min(_VAL_BYTES, _VAL_FRACTION * sum(sizes)), 0
    first = len(documents)
    while taken < wanted and first > 1:
        first -= 1
        taken += sizes[first]
    parts = {"train": documents[:first], "val": documents[first:]}
    texts = {name: "".join(document + END_OF_TEXT for document in part) for name, part in parts.items()}
    (folder / "train.txt").write_bytes(texts["train"].encode())
    tokenizer = Tokenizer(*train_bpe(folder / "train.txt", _LAPTOP.vocab_size, [END_OF_TEXT]), [END_OF_TEXT])
    for name, part in texts.items():
        np.save(folder / f"{name}.npy", tokenizer.encode_array(part))
    data = {"tokens": str(folder / "train.npy"), "val_tokens": str(folder / "val.npy"), "val_text_bytes": taken}
    return data | {"vocab_size": _LAPTOP.vocab_size, "end_of_text_id": tokenizer.end_of_text_id}


def probe(job: dict[str, Any], seconds: float) -> tuple[dict[str, Any], int]:
    """The job as it is fastest, among the ways that it lists to compile and to attend, and the steps that fit.

    Raises:
        NotMeasured: it runs in no way, or has another number of parameters.
    """
    choices = [{"compile": compiled, "attention": way} for compiled in job["compile"] for way in job["attention"]]
    shared = job | {"task": "training", "device": "cpu", "allocator": "tuned", "seconds": _PROBE_SECONDS}
    probed: list[tuple[dict[str, Any], dict[str, Any]]] = []
    failures: list[NotMeasured] = []
    for choice in choices:
        try:
            probed.append((run_job(_PROBE, shared | choice, _PROBE_TIMEOUT), choice))
        except NotMeasured as error:  # a machine without a compiler measures the rest
            failures.append(error)
    if not probed:
        raise failures[0]
    found, choice = min(probed, key=lambda pair: pair[0]["seconds_per_step"])
    expected = sum(parameters(_LAPTOP.model, _LAPTOP.vocab_size).values())
    if job["system"] != "lm" and abs(found["parameters"] - expected) > _TOLERANCE * expected:
        raise NotMeasured(f"has {found['parameters']:,} parameters, not the {expected:,} of the laptop preset")
    return job | choice, max(_POINTS, round(seconds / found["seconds_per_step"]))


def learn(job: dict[str, Any], rate: float | None, steps: int, seconds: float) -> Learned:
    """One training; `rate` is the maximum of the others' schedule, ours has the preset's, its fall as long a part."""
    optim = job["optim"]
    if rate is None:
        optim = optim | {"decay_steps": round(job["decay_fraction"] * steps)}
    else:
        optim = optim | {"max_learning_rate": rate, "warmup_steps": round(_WARM_UP * steps)}
    learned = run_job(
        _LEARN, job | {"optim": optim, "steps": steps, "points": _POINTS}, _TIMEOUT_FACTOR * seconds + 600
    )
    chosen = {name: job[name] for name in ("system", "batch_size", "dtype", "compile", "attention")}
    return chosen | {"learning_rate": optim["max_learning_rate"], "steps": steps} | learned


def curves(trainings: list[Learned]) -> str:
    """A CSV row for each evaluation."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["system", "learning_rate", "step", "seconds", "val_bits_per_byte"])
    for one in trainings:
        for point in one["curve"]:
            figures = [point["step"], f"{point['seconds']:.2f}", f"{point['val_bits_per_byte']:.5f}"]
            writer.writerow([one["system"], one["learning_rate"], *figures])
    return text.getvalue()


def seconds_to(curve: list[dict[str, float]], bits_per_byte: float) -> float | None:
    """When a curve first reaches a value, on the straight line between two evaluations; None if it never does.

    Example: from 2.0 bits at 10 s to 1.0 at 20 s, 1.5 is reached at 15 s.
    """
    before = None
    for point in curve:
        if point["val_bits_per_byte"] <= bits_per_byte:
            if before is None:
                return point["seconds"]
            fall = before["val_bits_per_byte"] - point["val_bits_per_byte"]
            share = (before["val_bits_per_byte"] - bits_per_byte) / fall
            return before["seconds"] + share * (point["seconds"] - before["seconds"])
        before = point
    return None


def report(trainings: list[Learned]) -> list[str]:
    """A table of the trainings and the line that sums them up."""
    lines = [
        "| system | learning rate | batch size | compiled | attention | parameters | steps | seconds | first step, s |"
    ]
    lines[0] += " val bits per byte |"
    lines.append("| --- " * 10 + "|")
    for one in trainings:
        last = one["curve"][-1]
        figures = [one["system"], f"{one['learning_rate']:g}", one["batch_size"], one["compile"], one["attention"]]
        figures += [
            f"{one['parameters']:,}",
            one["steps"],
            f"{last['seconds']:.0f}",
            f"{one['first_step_seconds']:.1f}",
        ]
        lines.append(f"| {' | '.join(map(str, figures))} | {last['val_bits_per_byte']:.4f} |")
    ours = [one for one in trainings if one["system"] == "lm"]
    best = min(
        (one for one in trainings if one["system"] != "lm"),
        key=lambda one: one["curve"][-1]["val_bits_per_byte"],
        default=None,
    )
    if ours and best:
        end = best["curve"][-1]
        times = [seconds_to(one["curve"], end["val_bits_per_byte"]) for one in ours]
        reached = min((seconds for seconds in times if seconds is not None), default=None)
        ending = f"{best['system']} at {best['learning_rate']:g}, ends at {end['val_bits_per_byte']:.4f} bits per byte"
        if reached is None:
            ours_does = f"ours ends at {min(one['curve'][-1]['val_bits_per_byte'] for one in ours):.4f}"
        else:
            ours_does = f"ours reaches that after {reached / end['seconds']:.2f} of its time"
        lines += ["", f"The best of the others, {ending}; {ours_does}."]
    return lines


def draw(trainings: list[Learned], path: Path) -> None:
    """Curves of bits a byte over seconds, ours in full colour."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for one in trainings:
        seconds = [point["seconds"] for point in one["curve"]]
        bits = [point["val_bits_per_byte"] for point in one["curve"]]
        is_ours = one["system"] == "lm"
        label = f"{one['system']}, {one['steps']} steps" if is_ours else f"{one['system']}, {one['learning_rate']:g}"
        axes.plot(seconds, bits, label=label, linewidth=2.5 if is_ours else 1.0, linestyle="-" if is_ours else "--")
    axes.set(xlabel="seconds of training", ylabel="val bits per byte")
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    exit_cleanly(main)
