"""Write the corpus described by params.yaml to text files such as train.txt and val.txt, and manifest.json."""

import argparse
from pathlib import Path

from lm import config
from lm.atomic import make_folder, translate_write_errors, write_json
from lm.corpus.sources import open_corpus, story_bits, story_seeds
from lm.corpus.transfer import check_disk
from lm.corpus.writer import write_corpus
from lm.progress import lock_folder
from stages import run_stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="file with the parameters")
    parser.add_argument("--raw", type=Path, required=True, help="folder to write the text and the manifest to")
    parser.add_argument("--cache", type=Path, required=True, help="folder that keeps downloads between runs")
    parser.add_argument("--unfinished", type=Path, required=True, help="folder for the text until it is complete")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON file to write")
    paths = parser.parse_args()
    params = config.load_any(paths.params)
    data = params.data

    manifest_path = paths.raw / "manifest.json"
    for folder in (paths.raw, paths.metrics.parent):
        make_folder(folder)
    if data.source == "stories":  # the size of the other sources is not known
        check_disk(paths.raw, data.train_bytes + data.val_bytes)
    with lock_folder(paths.cache, "download"):
        corpus = open_corpus(data, paths.cache, params.runtime.cluster)
        with translate_write_errors(manifest_path):
            # The manifest is written last, so its presence means that both splits are complete and match it.
            manifest_path.unlink(missing_ok=True)
        text = write_corpus(data, corpus, paths.raw, paths.unfinished, params.runtime.cluster)

    splits = text["splits"]
    metrics = {f"{name}_{key}": split[key] for name, split in splits.items() for key in ("bytes", "documents")}
    if data.source == "stories":
        val = splits["val"]
        val["entropy_bits"] = story_bits(story_seeds(data.seed)["val"], val["documents"])
        metrics["entropy_bits_per_byte"] = val["entropy_bits"] / val["bytes"]
    write_json(manifest_path, {"source": data.source, **text})
    write_json(paths.metrics, metrics)
    for name, split in splits.items():
        print(f"{name}: {split['bytes']:,} bytes of text in {split['documents']:,} documents")


if __name__ == "__main__":
    run_stage(main)
