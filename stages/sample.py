"""Generate samples with the trained model, and write them as readable text and as JSON."""

import argparse
import dataclasses
from pathlib import Path

from tqdm import tqdm

from lm import config
from lm.atomic import make_folder, write_json, write_text
from lm.device import pick_device
from lm.generation.batch import Batch
from lm.generation.decoder import Decoder
from lm.generation.generate import complete, window_notice
from lm.generation.text import Sample
from lm.model.files import load_model
from lm.tokenizer.tokenizer import Tokenizer
from stages import run_stage

MAX_ROWS = 64  # texts generated at the same time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="file with the parameters")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder that the stage train_bpe wrote")
    parser.add_argument("--model", type=Path, required=True, help="folder that the stage train wrote")
    parser.add_argument("--samples", type=Path, required=True, help="folder to write samples.txt and samples.json to")
    args = parser.parse_args()
    params = config.load(args.params)
    tokenizer = Tokenizer.load(args.tokenizer)
    make_folder(args.samples)
    device = pick_device(params.runtime.device)
    model = load_model(args.model, tokenizer.hash, params.runtime.attention_backend).to(device)

    batch = Batch(Decoder(model, min(params.sample.num_samples, MAX_ROWS)))
    samples: list[Sample] = []
    for prompt in tqdm(params.sample.prompts, "sampling", unit="prompt", disable=None):
        length = len(tokenizer.encode_prompt(prompt))
        if notice := window_notice(length, params.sample.max_new_tokens, model.config.context_length):
            tqdm.write(f"{prompt!r}: {notice}")
        samples += complete(batch, tokenizer, prompt, params.sample)
    write_json(args.samples / "samples.json", [dataclasses.asdict(sample) for sample in samples])
    write_text(args.samples / "samples.txt", "\n".join(map(_readable, samples)))
    first_line, _, _ = samples[0].text.partition("\n")
    print(f"{len(samples)} samples in {args.samples / 'samples.txt'}, the first: {first_line}")


def _readable(sample: Sample) -> str:
    end = "" if sample.ended else " [...]"
    return f"--- prompt {sample.prompt!r}, seed {sample.seed}\n{sample.text}{end}\n"


if __name__ == "__main__":
    run_stage(main)
