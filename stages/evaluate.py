"""Measure what the trained model has learned, print it as tables, and write it as metrics, a curve and a picture."""

import argparse
from pathlib import Path

from lm import config
from lm.atomic import make_folder, write_json
from lm.device import pick_device
from lm.evaluation.calibration import write_calibration
from lm.evaluation.evaluate import evaluate
from lm.evaluation.picture import evaluation_picture
from lm.evaluation.table import tables
from lm.model.files import load_model
from lm.tokenizer.tokenizer import Tokenizer
from stages import run_stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="file with the parameters")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder that the stage train_bpe wrote")
    parser.add_argument("--tokens", type=Path, required=True, help="folder that the stage encode_memmap wrote")
    parser.add_argument("--model", type=Path, required=True, help="folder that the stage train wrote")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--calibration", type=Path, required=True, help="CSV file to write")
    parser.add_argument("--picture", type=Path, required=True, help="PNG file to write")
    args = parser.parse_args()
    params = config.load(args.params)
    tokenizer = Tokenizer.load(args.tokenizer)
    for path in (args.metrics, args.calibration, args.picture):
        make_folder(path.parent)
    device = pick_device(params.runtime.device)
    model = load_model(args.model, tokenizer.hash, params.runtime.attention_backend).to(device)

    evaluation = evaluate(model, tokenizer, args.tokens, params.evaluate, params.sample)
    evaluation_picture(evaluation.metrics, evaluation.reliability, args.picture)
    write_calibration(evaluation.reliability, args.calibration)
    write_json(args.metrics, evaluation.metrics)
    print(tables(evaluation.metrics))


if __name__ == "__main__":
    run_stage(main)
