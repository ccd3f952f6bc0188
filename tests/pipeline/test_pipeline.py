"""Which stages run again after which change, as DVC itself decides, and what the pipeline leaves behind."""

import csv
import importlib
import json
import re
import shutil
import sys

import pytest
from ruamel.yaml import YAML

from lm.errors import UserError
from tests.pipeline.conftest import PROJECT, copy_of_the_project, run_in

CELLS = {
    "ablate@baseline-16x1-256-1",
    "ablation_cells",
    "ablation_table",
    "scale@16x1-1280-1",
    "scale_cells",
    "scaling_law",
    "report",
}


def stages_run(output: str) -> list[str]:
    return re.findall(r"Running stage '([^']+)'", output)


def test_the_whole_pipeline_leaves_what_it_promises(pipeline):
    metrics = json.loads((pipeline / "metrics/train.json").read_text())
    assert metrics["val_bits_per_byte"] > metrics["floor_bits_per_byte"] > 0
    with (pipeline / "metrics/train.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "3", "6"]
    sample = json.loads((pipeline / "data/samples/samples.json").read_text())[0]
    assert sample["text"].startswith("Once")
    assert sample["text"] in (pipeline / "data/samples/samples.txt").read_text()
    evaluation = json.loads((pipeline / "metrics/evaluation.json").read_text())
    assert evaluation["bits_per_byte"] - evaluation["excess_bits_per_byte"] == pytest.approx(
        evaluation["floor_bits_per_byte"]
    )
    assert evaluation["floor_bits_per_byte"] == pytest.approx(metrics["floor_bits_per_byte"])
    assert evaluation["bits_per_byte"] == pytest.approx(metrics["document_bits_per_byte"])
    assert {"later_name_nats", "minimal_pair_accuracy", "samples_derivable", "calibration_error"} <= set(evaluation)
    assert "| baseline |" in (pipeline / "metrics/ablation.md").read_text()
    for name in (
        "train.png",
        "evaluation.png",
        "calibration.csv",
        "ablation.png",
        "ablation.csv",
        "ablation_cells.csv",
        "ablation/baseline-16x1-256-1.json",
        "scale_cells.csv",
        "scaling.md",
    ):
        assert (pipeline / "metrics" / name).stat().st_size > 0
    assert not list((pipeline / "data/.checkpoints").iterdir())


def test_metrics_hold_no_times(pipeline):
    for path in (pipeline / "metrics").rglob("*.json"):
        assert not re.search(r"second|time|mfu", path.read_text()), path


def test_the_console_shows_one_plan_and_one_line_per_cell(pipeline):
    console = (pipeline / "console").read_text()
    assert len(re.findall("^parameters ", console, re.MULTILINE)) == 1  # the table of the plan
    assert re.findall(r"^step (\d+), val loss", console, re.MULTILINE) == ["0", "3", "6"]
    (cell,) = re.findall(r"^baseline-16x1-256-1: .*", console, re.MULTILINE)
    assert re.fullmatch(r"baseline-16x1-256-1: \d\.\d{4} bits per byte, \d+\.\d s after \d+\.\d s of start-up", cell)
    stages = re.findall(r"^Running stage '(?!ablate|scale)", console, re.MULTILINE)
    times = re.findall(r"^(\d+\.\d) s, of which (\d+\.\d) s were start-up$", console, re.MULTILINE)
    assert len(times) >= len(stages) > 5 and all(float(start_up) <= float(total) for total, start_up in times)
    assert "%|" not in console  # no progress bar, because this is not a terminal


def test_nothing_runs_again_without_a_change(run):
    assert stages_run(run("dvc", "repro").stdout) == []


def test_dvc_notices_changed_code_in_folders_and_ignores_config_modules(run, changed):
    """The dependencies on folders work as DVC applies them, with .dvcignore."""
    for name in ("tokenizer/config.py", "model/config.py", "training/config.py", "generation/config.py", "config.py"):
        with (changed / "lm" / name).open("a") as file:
            file.write("# edited\n")
    assert json.loads(run("dvc", "status", "--json").stdout) == {}
    with (changed / "lm/generation/sampling.py").open("a") as file:
        file.write("# edited\n")
    changes = [{"changed deps": {"lm/generation": "modified"}}]
    expected = {"sample": changes, "evaluate": changes, "report": changes}
    assert json.loads(run("dvc", "status", "--json").stdout) == expected
    run("git", "checkout", "-q", "--", "lm/generation")
    with (changed / "lm/tokenizer/training/bpe.py").open("a") as file:
        file.write("# edited\n")
    assert stages_run(run("dvc", "repro").stdout) == ["train_bpe"]


def test_dvc_knows_which_stages_read_a_parameter(run, changed):
    """Those that use the outputs of these stages follow, as in the tests that run experiments."""
    yaml = YAML()
    params = yaml.load(changed / "params.yaml")
    params["tokenizer"]["vocab_size"] = 300
    params["model"]["norm"] = "none"
    params["optim"]["max_learning_rate"] = 3e-5
    params["sample"]["temperature"] = 0.5
    yaml.dump(params, changed / "params.yaml")
    status = json.loads(run("dvc", "status", "--json").stdout)
    assert {stage: set(changes[0]["changed deps"]["params.yaml"]) for stage, changes in status.items()} == {
        "train_bpe": {"tokenizer"},
        "train": {"model", "optim"},
        "sample": {"sample"},
        "evaluate": {"sample.temperature"},
        "report": {"tokenizer", "model", "optim", "sample"},
    }


@pytest.mark.slow
def test_a_switch_of_the_model_runs_train_and_what_uses_the_model_and_comes_back_at_once(run, changed):
    output = run("dvc", "exp", "run", "-n", "no-norm", "-S", "model.norm=none").stdout
    ran = stages_run(output)
    assert ran[0] == "train" and sorted(ran[1:-1]) == ["evaluate", "sample"] and ran[-1] == "report"
    output = run("dvc", "exp", "run", "-S", "model.norm=rmsnorm").stdout
    # DVC does not keep what is committed to git in its cache, so the report is written again.
    assert stages_run(output) == ["report"]
    shown = run("dvc", "metrics", "diff", "HEAD", "no-norm").stdout
    assert re.search(r"metrics/train\.json\s+val_loss", shown)
    run("dvc", "exp", "remove", "-A")


@pytest.mark.slow
def test_a_sampling_option_runs_sample_evaluate_and_report_only(run, changed):
    ran = stages_run(run("dvc", "exp", "run", "-S", "sample.temperature=0.5").stdout)
    assert sorted(ran) == ["evaluate", "report", "sample"]


@pytest.mark.slow
def test_a_vocabulary_runs_all_but_the_download(run, changed):
    ran = stages_run(run("dvc", "exp", "run", "-S", "tokenizer.vocab_size=300").stdout)
    assert ran[:2] == ["train_bpe", "encode_memmap"]
    assert set(ran[2:]) == {"train", "sample", "evaluate", *CELLS}


@pytest.mark.slow
def test_a_small_learning_rate_is_a_number(run, changed):
    ran = stages_run(run("dvc", "exp", "run", "-S", "optim.max_learning_rate=3e-5").stdout)
    assert set(ran) == {"train", "sample", "evaluate", "report"}
    assert "max_learning_rate: 3e-05" in (changed / "params.yaml").read_text()
    with (changed / "metrics/train.csv").open(newline="", encoding="utf-8") as file:
        rates = {int(row["step"]): float(row["learning_rate"]) for row in csv.DictReader(file)}
    assert 1e-5 < rates[3] < 3e-5 and rates[6] == 1e-5  # on the cosine between the two


def test_a_new_variant_runs_only_its_row(run, changed):
    params = (changed / "params.yaml").read_text(encoding="utf-8")
    params = re.sub(r"(  run:.*\n  - baseline\n)", r"\1  - wide-silu\n", params)
    block = re.search(r"    silu:\n(?:      .*\n)+", params).group(0)
    params = params.replace(block, block + block.replace("silu:", "wide-silu:", 1))
    (changed / "params.yaml").write_text(params, encoding="utf-8")
    assert stages_run(run("dvc", "repro", "ablation_table").stdout) == [
        "plan",
        "ablate@wide-silu-16x1-256-1",
        "ablation_cells",
        "ablation_table",
    ]
    assert json.loads(run("dvc", "status", "--json").stdout).keys() == {"report"}
    assert "| wide-silu |" in (changed / "metrics/ablation.md").read_text()


@pytest.mark.slow
def test_a_diverging_run_is_a_result_and_has_samples(run, changed):
    changes = ["-S", "optim.max_learning_rate=1e3", "-S", "optim.min_learning_rate=1e3", "-S", "optim.warmup_steps=0"]
    output = run("dvc", "exp", "run", "-n", "wild", *changes).stdout
    assert {"train", "sample", "evaluate", "report"} <= set(stages_run(output))
    assert "The run diverged" in (changed / "metrics/report.md").read_text()
    assert json.loads((changed / "metrics/train.json").read_text())["diverged"] == 1
    run("dvc", "exp", "remove", "-A")


def test_a_mistake_in_a_late_section_stops_the_first_stage(run, changed):
    params = (changed / "params.yaml").read_text(encoding="utf-8")
    wrong = re.sub("  temperature: .*", "  temperature: hot", params).replace("  seed: 1\n", "  seed: 9\n", 1)
    (changed / "params.yaml").write_text(wrong, encoding="utf-8")
    result = run("dvc", "repro", fails=True)
    assert stages_run(result.stdout) == ["download"]
    assert "error: params.yaml: sample.temperature: expected a number, got 'hot'" in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("script", "missing"),
    [
        ("train_bpe --raw X --tokenizer t --unfinished u --metrics m --timing t", "dvc repro download"),
        ("encode_memmap --raw data/raw --tokenizer X --tokens t --unfinished u --metrics m --timing t",
         "dvc repro train_bpe"),
        ("train --tokenizer data/tokenizer --tokens X --checkpoints c --model m --metrics m --curve c --picture p "
         "--tracking t --timing t", "dvc repro encode_memmap"),
        ("sample --tokenizer data/tokenizer --model X --samples s", "dvc repro train"),
        ("train_cell --plan X --tokenizer data/tokenizer --tokens data/tokens --checkpoints c --metrics m --curve c "
         "--tracking t",
         "dvc repro, or lm cells"),
        ("collect --section ablate --cells X --tokens data/tokens --table t", "lm cells"),
        ("ablation_table --cells X --table t --picture p", "lm cells"),
    ],
)  # fmt: skip
def test_a_missing_input_names_the_stage_that_makes_it(pipeline, tmp_path, monkeypatch, script, missing):
    name, *flags = script.split()
    for entry in (pipeline / "data", pipeline / "params.yaml"):
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *flags])
    with pytest.raises(UserError) as error:
        importlib.import_module(f"stages.{name}").main()
    assert str(error.value).startswith("X") and str(error.value).endswith(missing)


@pytest.mark.slow  # compiles the decoding step of the copy
def test_generate_continues_a_prompt_from_the_command_line(run):
    command = ["python", "-m", "lm", "generate", "Once upon", "--max-new-tokens", "5", "--num-samples", "2"]
    assert run(*command).stdout.count("Once upon") == 2


def test_without_git_the_pipeline_runs_with_no_scm(tmp_path):
    folder = copy_of_the_project(tmp_path)
    (folder / ".dvc").mkdir(exist_ok=True)
    (folder / ".dvc/config").write_text("")
    run = run_in(folder)
    result = run("dvc", "repro", "download", fails=True)
    assert "not a git repository" in result.stdout + result.stderr
    shutil.copyfile(PROJECT / "Makefile", folder / "Makefile")
    (folder / ".dvc/config.local").write_text("[core]\n    no_scm = true\n")
    assert stages_run(run("dvc", "repro", "download").stdout) == ["download"]
