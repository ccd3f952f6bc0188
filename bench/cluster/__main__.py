"""Prepare a corpus without Ray, on one node with one and two workers, and on two nodes.

The corpus is made of the built-in stories, in files of 50 MB. Every way runs the
stages download, train_bpe and encode_memmap in fresh processes, and all take
turns; their outputs are compared byte by byte. The nodes are processes of this
machine, and each worker has one processor.

Example:
  python -m bench.cluster --megabytes 5000
"""

import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from ruamel.yaml import YAML
from tqdm import tqdm

from bench.common.arguments import add_json, check_positive, make_json_folder, make_parser
from bench.common.tables import machine, versions
from lm.atomic import write_json
from lm.corpus.config import END_OF_TEXT
from lm.corpus.stories import stories
from lm.errors import UserError, exit_cleanly

_PROJECT = Path(__file__).resolve().parents[2]
_FILE_BYTES = 50_000_000
_FLAGS = {
    "download": "--raw raw --cache cache --metrics metrics/download.json",
    "train_bpe": "--raw raw --tokenizer tokenizer --metrics metrics/tokenizer.json --timing timing",
    "encode_memmap": "--raw raw --tokenizer tokenizer --tokens tokens --metrics metrics/tokens.json --timing timing",
}
_STORE_BYTES = 2_000_000_000  # of each node for results on their way; a real machine has 30% of its memory by default
_PLAIN = "without Ray"
_NODES = {  # the number of workers on each node of the cluster
    _PLAIN: [],
    "one node, one worker": [1],
    "one node, two workers": [2],
    "two nodes, one worker each": [1, 1],
}


def main() -> None:
    parser = make_parser("bench.cluster", __doc__)
    parser.add_argument("--megabytes", type=int, default=5000, help="size of the corpus (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="how often each way is measured (default: %(default)s)")
    add_json(parser)
    args = parser.parse_args()
    check_positive("--megabytes", [args.megabytes])
    check_positive("--repeats", [args.repeats])
    make_json_folder(args.json)
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with TemporaryDirectory(prefix="bench-cluster-") as temporary:
        folder = Path(temporary)
        size = _write_corpus(folder, args.megabytes * 1_000_000)
        expected = None
        for _, (way, nodes) in itertools.product(range(args.repeats), _NODES.items()):
            with _cluster(nodes) as address:
                for stage, time_taken in _run_stages(folder, address):
                    seconds[way][stage].append(time_taken)
                    print(f"{way}: {stage} {time_taken:.1f} s", file=sys.stderr)
            outputs = _checksum(folder)
            if outputs != (expected := expected or outputs):
                raise UserError(f"{way}: the outputs are not those of {_PLAIN}")
    print("\n".join(_table(seconds, size)))
    if args.json:
        rows = [
            {"way": way, "stage": stage, "seconds": s} for way, stages in seconds.items() for stage, s in stages.items()
        ]
        write_json(args.json, rows)


def _write_corpus(folder: Path, num_bytes: int) -> int:
    """Write stories to files, and return their size in bytes."""
    total = 0
    texts = (story.text for story in stories(1))
    with tqdm(desc="stories", total=num_bytes, unit="B", unit_scale=True, disable=None) as bar:
        for index in itertools.count():
            if total >= num_bytes:
                return total
            size = 0
            with (folder / f"stories-{index:05d}.txt").open("w", encoding="utf-8") as file:
                while size < min(_FILE_BYTES, num_bytes - total):
                    text = next(texts)
                    file.write(text + END_OF_TEXT)
                    size += len(text.encode())
            total += size
            bar.update(size)


@contextmanager
def _cluster(nodes: list[int]) -> Iterator[str]:
    """Start a cluster with this many processors on each node, and yield its address; `none` without nodes."""
    if not nodes:
        yield "none"
        return
    from ray.cluster_utils import Cluster

    head, *others = nodes
    shared = {"object_store_memory": _STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": head, "include_dashboard": False, **shared})
    for number in others:
        cluster.add_node(num_cpus=number, **shared)
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


def _run_stages(folder: Path, cluster: str) -> Iterator[tuple[str, float]]:
    """Run the stages from the beginning, and yield the seconds that each takes."""
    yaml = YAML()
    params = yaml.load(_PROJECT / "params.yaml")
    params["data"].update(
        source="files", train_files=["stories-*.txt"], val_files=[], train_bytes=0, train_documents=0, val_bytes=0
    )
    params["tokenizer"]["vocab_size"] = 8192
    params["runtime"]["cluster"] = cluster
    yaml.dump(params, folder / "params.yaml")
    for room in ("raw", "tokenizer", "tokens", "cache"):
        shutil.rmtree(folder / room, ignore_errors=True)
    environment = {**os.environ, "PYTHONPATH": str(_PROJECT)}
    for stage, flags in _FLAGS.items():
        command = [sys.executable, "-m", f"stages.{stage}", "--unfinished", f"unfinished/{stage}", *flags.split()]
        start = time.perf_counter()
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if result.returncode:
            raise UserError(f"{stage}: {result.stderr.strip().splitlines()[-1]}")
        yield stage, time.perf_counter() - start


def _checksum(folder: Path) -> str:
    """The checksum of the manifests, which have the checksums of the text and of the tokens, and of the tokenizer."""
    digest = hashlib.sha256()
    for name in ("raw/manifest.json", "tokenizer/merges.txt", "tokens/manifest.json"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def _table(seconds: dict[str, dict[str, list[float]]], size: int) -> list[str]:
    lines = [
        f"{size / 1e9:.2f} GB of stories, medians of {len(seconds[_PLAIN]['download'])}",
        f"{machine()}; {versions(['ray'])}",
        "",
        f"| | {' | '.join(_FLAGS)} | all | MB/s | time / {_PLAIN} |",
        f"|---|{'---:|' * (len(_FLAGS) + 3)}",
    ]
    plain = sum(median(values) for values in seconds[_PLAIN].values())
    for way, stages in seconds.items():
        times = [median(values) for values in stages.values()]
        shown = [f"{value:.1f} s" for value in (*times, sum(times))]
        lines.append(f"| {way} | {' | '.join(shown)} | {size / 1e6 / sum(times):.0f} | {sum(times) / plain:.2f} |")
    return lines


if __name__ == "__main__":
    exit_cleanly(main)
