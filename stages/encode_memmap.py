"""Encode the train and val splits into token files with the trained tokenizer."""

import argparse
import time
from pathlib import Path

import numpy as np

from lm import config
from lm.atomic import make_folder, write_json
from lm.progress import lock_folder
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens.encode import encode_split, move_shards
from lm.tokens.manifest import read_text_facts, write_manifest
from stages import run_stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="file with the parameters")
    parser.add_argument("--raw", type=Path, required=True, help="folder that the stage download wrote")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder that the stage train_bpe wrote")
    parser.add_argument("--tokens", type=Path, required=True, help="folder to write the token files to")
    parser.add_argument("--unfinished", type=Path, required=True, help="folder for token files until all are complete")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--timing", type=Path, required=True, help="folder to write encode_memmap.json to")
    args = parser.parse_args()
    cluster = config.load_any(args.params).runtime.cluster
    facts = read_text_facts(args.raw)
    tokenizer = Tokenizer.load(args.tokenizer)
    for folder in (args.tokens, args.metrics.parent, args.timing):
        make_folder(folder)

    splits = {}
    metrics: dict[str, float] = {}
    timing: dict[str, float] = {}
    with lock_folder(args.unfinished, "encoding"):
        for split in facts:
            start = time.perf_counter()
            splits[split], occurrences = encode_split(
                args.raw, split, facts[split], tokenizer, args.unfinished, cluster
            )
            seconds = time.perf_counter() - start
            count, size = splits[split]["count"], splits[split]["bytes"]
            metrics[f"{split}_tokens"] = count
            metrics[f"{split}_bytes_per_token"] = size / count
            if split == "train":
                metrics["vocabulary_use"] = np.count_nonzero(occurrences) / tokenizer.vocab_size
            timing[f"{split}_seconds"] = seconds
            timing[f"{split}_bytes_per_second"] = size / seconds
            print(f"{split}: {count:,} tokens in {seconds:.1f} s, {size / seconds / 1e6:.1f} MB/s")
        move_shards(args.unfinished, args.tokens)
        write_manifest(args.tokens, tokenizer, splits)
    write_json(args.metrics, metrics)
    write_json(args.timing / "encode_memmap.json", timing)


if __name__ == "__main__":
    run_stage(main)
