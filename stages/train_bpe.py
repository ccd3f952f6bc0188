"""Train the BPE tokenizer described by params.yaml on the train split."""

import argparse
import itertools
import shutil
import time
from pathlib import Path

from lm import config
from lm.atomic import make_folder, write_json
from lm.progress import lock_folder
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokenizer.training.bpe import train_bpe
from lm.tokens.manifest import read_text_facts, text_paths
from stages import run_stage

_NUM_LONGEST = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="file with the parameters")
    parser.add_argument("--raw", type=Path, required=True, help="folder that the stage download wrote")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder to write the tokenizer's files to")
    parser.add_argument("--unfinished", type=Path, required=True, help="folder for counts until all are complete")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--timing", type=Path, required=True, help="folder to write train_bpe.json to")
    args = parser.parse_args()
    all_params = config.load_any(args.params)
    params, cluster = all_params.tokenizer, all_params.runtime.cluster
    facts = read_text_facts(args.raw)["train"]
    sizes = itertools.accumulate(shard["bytes"] for shard in facts["shards"])
    num_files = 1 + sum(size < params.train_bytes for size in sizes) if params.train_bytes else None
    paths = text_paths(args.raw, "train", facts)[:num_files]
    for folder in (args.tokenizer, args.metrics.parent, args.timing):
        make_folder(folder)

    start = time.perf_counter()
    with lock_folder(args.unfinished, "training of a tokenizer"):
        vocab, merges = train_bpe(
            paths,
            params.vocab_size,
            params.special_tokens,
            params.pattern,
            cluster=cluster,
            unfinished=args.unfinished,
        )
    seconds = time.perf_counter() - start
    Tokenizer(vocab, merges, params.special_tokens, params.pattern).save(args.tokenizer)
    shutil.rmtree(args.unfinished, ignore_errors=True)

    longest = sorted((left + right for left, right in merges), key=len, reverse=True)[:_NUM_LONGEST]
    metrics = {
        "vocab_size": len(vocab),
        "num_merges": len(merges),
        "longest_token_bytes": max(map(len, longest), default=1),
        "longest_tokens": " | ".join(token.decode(errors="replace") for token in longest),
    }
    timing = {"seconds": seconds, "bytes_per_second": sum(path.stat().st_size for path in paths) / seconds}
    write_json(args.metrics, metrics)
    write_json(args.timing / "train_bpe.json", timing)
    if len(vocab) < params.vocab_size:
        print(f"the text has no more pairs to merge: {len(vocab):,} tokens instead of {params.vocab_size:,}")
    print(f"{len(vocab):,} tokens in {seconds:.1f} s, {timing['bytes_per_second'] / 1e6:.1f} MB/s")


if __name__ == "__main__":
    run_stage(main)
