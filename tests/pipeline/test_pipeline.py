"""What it feels like: what runs again after which change, seen through dvc itself."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from tests.pipeline.conftest import copy_of_the_project, run_in


def stages_run(output: str) -> list[str]:
    return re.findall(r"Running stage '([^']+)'", output)


@pytest.fixture(autouse=True)
def as_committed(run):
    """Every test starts from the first run, whatever the one before has left."""
    run("git", "checkout", "-q", "--", ".")
    run("dvc", "checkout", "-q")
    yield


def test_the_whole_pipeline_leaves_what_it_promises(pipeline):
    metrics = json.loads((pipeline / "metrics/train.json").read_text())
    assert metrics["val_bits_per_byte"] > metrics["floor_bits_per_byte"] > 0
    with (pipeline / "metrics/train.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "3", "6"]
    sample = json.loads((pipeline / "data/samples/samples.json").read_text())[0]
    assert sample["text"].startswith("Once")
    assert sample["text"] in (pipeline / "data/samples/samples.txt").read_text()
    assert "| baseline |" in (pipeline / "metrics/ablation.md").read_text()
    for name in ("train.png", "ablation.png", "ablation.csv", "ablation/baseline-1.json"):
        assert (pipeline / "metrics" / name).stat().st_size > 0
    assert not list((pipeline / "data/.checkpoints").iterdir())


def test_metrics_hold_no_times(pipeline):
    for path in (pipeline / "metrics").rglob("*.json"):
        assert not re.search(r"second|time|mfu|rate", path.read_text()), path


def test_again_nothing_runs(run):
    assert stages_run(run("dvc", "repro").stdout) == []


def test_a_switch_of_the_model_runs_train_and_sample_and_comes_back_at_once(run):
    output = run("dvc", "exp", "run", "-n", "no-norm", "-S", "model.norm=none").stdout
    assert stages_run(output) == ["train", "sample"]
    output = run("dvc", "exp", "run", "-S", "model.norm=rmsnorm").stdout
    assert stages_run(output) == []
    shown = run("dvc", "metrics", "diff", "HEAD", "no-norm").stdout
    assert re.search(r"metrics/train\.json\s+val_loss", shown)
    run("dvc", "exp", "remove", "-A")


def test_a_sampling_option_runs_sample_only(run):
    assert stages_run(run("dvc", "exp", "run", "-S", "sample.temperature=0.5").stdout) == ["sample"]


def test_a_vocabulary_runs_all_but_the_download(run):
    ran = stages_run(run("dvc", "exp", "run", "-S", "tokenizer.vocab_size=300").stdout)
    assert ran[:2] == ["train_bpe", "encode_memmap"]
    assert set(ran[2:]) == {"train", "sample", "ablate@baseline-1", "ablation_table"}


def test_a_small_learning_rate_is_a_number(run, pipeline):
    ran = stages_run(run("dvc", "exp", "run", "-S", "optim.max_learning_rate=3e-5").stdout)
    assert set(ran) == {"train", "sample", "ablate@baseline-1", "ablation_table"}
    assert "max_learning_rate: 3e-05" in (pipeline / "params.yaml").read_text()
    with (pipeline / "metrics/train.csv").open(newline="", encoding="utf-8") as file:
        rates = {int(row["step"]): float(row["learning_rate"]) for row in csv.DictReader(file)}
    assert 1e-5 < rates[3] < 3e-5 and rates[6] == 1e-5  # on the cosine between the two


def test_a_new_variant_runs_its_row_only(run, pipeline):
    params = (pipeline / "params.yaml").read_text(encoding="utf-8")
    params = re.sub(r"(  run:.*\n  - baseline\n)", r"\1  - wide-silu\n", params)
    block = re.search(r"    silu:\n(?:      .*\n)+", params).group(0)
    params = params.replace(block, block + block.replace("silu:", "wide-silu:", 1))
    (pipeline / "params.yaml").write_text(params, encoding="utf-8")
    assert stages_run(run("dvc", "repro").stdout) == ["ablate@wide-silu-1", "ablation_table"]
    assert "| wide-silu |" in (pipeline / "metrics/ablation.md").read_text()


def test_a_diverging_run_is_a_result_and_has_samples(run, pipeline):
    changes = ["-S", "optim.max_learning_rate=1e30", "-S", "optim.min_learning_rate=1e30", "-S", "optim.warmup_steps=0"]
    output = run("dvc", "exp", "run", "-n", "wild", *changes).stdout
    assert {"train", "sample", "ablation_table"} <= set(stages_run(output))
    assert json.loads((pipeline / "metrics/train.json").read_text())["diverged"] == 1
    assert "1 of 1" in (pipeline / "metrics/ablation.md").read_text()
    run("dvc", "exp", "remove", "-A")


def test_a_mistake_in_a_late_section_stops_the_first_stage(run, pipeline):
    params = (pipeline / "params.yaml").read_text(encoding="utf-8")
    wrong = re.sub("  temperature: .*", "  temperature: hot", params).replace("  seed: 1\n", "  seed: 9\n", 1)
    (pipeline / "params.yaml").write_text(wrong, encoding="utf-8")
    result = run("dvc", "repro", fails=True)
    assert stages_run(result.stdout) == ["download"]
    assert "error: params.yaml: sample.temperature: expected a number, got 'hot'" in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("script", "missing"),
    [
        ("train_bpe --raw X --tokenizer t --metrics m --timing t", "dvc repro download"),
        ("encode_memmap --raw data/raw --tokenizer X --tokens t --metrics m --timing t", "dvc repro train_bpe"),
        ("train --tokenizer data/tokenizer --tokens X --checkpoints c --model m --metrics m --curve c --picture p "
         "--tracking t --timing t", "dvc repro encode_memmap"),
        ("sample --tokenizer data/tokenizer --model X --samples s", "dvc repro train"),
        ("ablate --variant baseline --seed 1 --tokenizer X --tokens X --checkpoints c --metrics m --curve c "
         "--tracking t",
         "dvc repro train_bpe"),
        ("ablation_table --metrics X --curves X --table t --picture p", "dvc repro ablate"),
    ],
)  # fmt: skip
def test_a_missing_input_names_the_stage_that_makes_it(run, script, missing):
    name, *flags = script.split()
    result = run("python", "-m", f"stages.{name}", *flags, fails=True)
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: X") and line.endswith(missing)


def test_generate_continues_a_prompt_from_the_command_line(run):
    command = ["python", "-m", "lm", "generate", "Once upon", "--max-new-tokens", "5", "--num-samples", "2"]
    first, second = run(*command).stdout, run(*command).stdout
    assert first == second and first.count("Once upon") == 2
    result = run(*command, "--top-p", "0", fails=True)
    assert result.stderr.strip() == "error: top_p: expected more than 0 and at most 1, got 0.0"


def test_report_shows_metrics_sample_table_and_pictures(run):
    shown = run("python", "-m", "lm", "report").stdout
    for part in ("val_loss", "Once", "| baseline |", "metrics/train.png", "metrics/ablation.png"):
        assert part in shown


def test_without_git_the_pipeline_runs_with_no_scm(tmp_path):
    folder = copy_of_the_project(tmp_path)
    (folder / ".dvc").mkdir(exist_ok=True)
    (folder / ".dvc/config").write_text("")
    run = run_in(folder)
    assert "not a git repository" in (result := run("dvc", "repro", "download", fails=True)).stdout + result.stderr
    shutil.copyfile(Path(__file__).resolve().parents[2] / "Makefile", folder / "Makefile")
    (folder / ".dvc/config.local").write_text("[core]\n    no_scm = true\n")
    assert stages_run(run("dvc", "repro", "download").stdout) == ["download"]
