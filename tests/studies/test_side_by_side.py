"""The runner, with a small program in the place of DVC, and once with DVC itself."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from lm.errors import UserError
from lm.studies.side_by_side import run_side_by_side, work

# Stage NAME is up to date when the file NAME exists. `plan` holds the edges, `behavior` the commands of stages.
DVC = """#!/bin/sh
[ "$1" = --wait-for-lock ] && shift
case "$1" in
dag) cat dag ;;
status)
    separator='{'
    for stage in $(cat stages); do
        [ -e "$stage" ] || { printf '%s"%s": []' "$separator" "$stage"; separator=', '; }
    done
    [ "$separator" = '{' ] && printf '{'
    echo '}' ;;
repro)
    echo "$*" >> arguments
    for stage; do
        case "$stage" in repro | --*) continue ;; esac
        [ -e "$stage.unchanged" ] && { echo "Stage '$stage' didn't change, skipping"; continue; }
        echo "Running stage '$stage':"
        [ -e "$stage.sh" ] && { . "./$stage.sh" || exit 255; }
        echo "$stage $OMP_NUM_THREADS $CUDA_VISIBLE_DEVICES" >> started
        echo "result of $stage"
        echo "Updating lock file 'dvc.lock'"
        touch "$stage"
    done ;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline of the stages a, b1 to b3, which need a, and c, which needs all b."""
    program = tmp_path / "bin/dvc"
    program.parent.mkdir()
    program.write_text(DVC)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    study = tmp_path / "study"
    study.mkdir()
    (study / "dvc.yaml").write_text("")
    stages = ["a", "b1", "b2", "b3", "c"]
    edges = [("a", name) for name in stages[1:4]] + [(name, "c") for name in stages[1:4]]
    lines = [f'"{name}";' for name in stages] + [f'"{needed}" -> "{stage}";' for needed, stage in edges]
    (study / "dag").write_text("\n".join(["strict digraph {", *lines, "}"]))
    (study / "stages").write_text(" ".join(stages))
    return study


def started(folder: Path) -> list[str]:
    return [line.split()[0] for line in (folder / "started").read_text().splitlines()]


def test_stages_run_after_those_that_they_need(folder):
    lines: list[str] = []
    outcome = run_side_by_side(folder, 2, 0, lines.append)
    order = started(folder)
    assert order[0] == "a" and sorted(order[1:4]) == ["b1", "b2", "b3"] and order[4:] == ["c"]
    assert sorted(outcome.done) == sorted(order) and not outcome.failed and not outcome.blocked
    assert lines[0] == "1 of 5: result of a" and lines[-1] == "5 of 5: result of c"


def test_what_is_up_to_date_does_not_run(folder):
    for name in ("a", "b2"):
        (folder / name).touch()
    run_side_by_side(folder, 1, 0, print)
    assert started(folder) == ["b1", "b3", "c"]
    assert run_side_by_side(folder, 1, 0, print).done == []


def test_a_pattern_chooses_stages_with_those_that_they_need(folder):
    run_side_by_side(folder, 1, 0, print, only="b[12]")
    assert started(folder) == ["a", "b1", "b2"]
    assert (folder / "arguments").read_text().endswith("repro --single-item b2\n")
    run_side_by_side(folder, 1, 0, print, pull=True)
    assert started(folder)[3:] == ["b3", "c"]
    assert (folder / "arguments").read_text().endswith("repro --pull --single-item c\n")
    with pytest.raises(UserError, match="dvc.yaml: no stage matches 'cell@x'; list them with: dvc stage list"):
        run_side_by_side(folder, 1, 0, print, only="cell@x")


@pytest.fixture
def many(folder: Path) -> Path:
    """A pipeline of eight stages that need nothing and take equally long."""
    names = [f"cell@16x1-100-{number}" for number in range(1, 9)]
    (folder / "dag").write_text("\n".join(["strict digraph {", *(f'"{name}";' for name in names), "}"]))
    (folder / "stages").write_text(" ".join(names))
    return folder


def test_one_dvc_gets_several_stages(many):
    lines: list[str] = []
    outcome = run_side_by_side(many, 2, 0, lines.append)
    assert len(outcome.done) == 8 and sorted(started(many)) == sorted(outcome.done)
    assert [line.partition(":")[0] for line in lines] == [f"{number} of 8" for number in range(1, 9)]
    calls = [line.split()[2:] for line in (many / "arguments").read_text().splitlines()]
    assert sorted(map(len, calls)) == [1, 1, 1, 1, 1, 1, 2]
    assert (many / "data/.logs/cell@16x1-100-1.log").read_text().splitlines()[0] == "Running stage 'cell@16x1-100-1':"


def test_what_one_dvc_reports_is_known_while_it_runs(many):
    (many / "cell@16x1-100-2.sh").write_text("while [ ! -e reported ]; do sleep 0.05; done")
    outcome = run_side_by_side(many, 1, 0, lambda line: (many / "reported").touch())
    assert outcome.done[:2] == ["cell@16x1-100-1", "cell@16x1-100-2"]


@pytest.mark.parametrize("last", ["echo 'error: the disk is full'", "echo \"ERROR: failed to reproduce '$stage': x\""])
def test_the_stages_that_one_dvc_would_have_run_after_one_that_failed_run_all_the_same(many, last):
    (many / "cell@16x1-100-1.sh").write_text(f"{last}; exit 1")
    outcome = run_side_by_side(many, 1, 0, print)
    assert len(outcome.done) == 7 and list(outcome.failed) == ["cell@16x1-100-1"]


def test_a_stage_that_fails_before_it_begins_is_not_taken_for_the_one_before_it(many):
    name = "cell@16x1-100-2"
    (many / "cell@16x1-100-1.sh").write_text(
        f"touch $stage; echo \"ERROR: failed to reproduce '{name}': no such file\"; exit 1"
    )
    (many / f"{name}.sh").write_text("exit 1")
    outcome = run_side_by_side(many, 1, 0, print)
    assert list(outcome.failed) == [name] and len(outcome.done) == 7
    assert outcome.failed[name].startswith(f"ERROR: failed to reproduce '{name}': no such file (")


def test_a_stage_that_turns_out_to_be_unchanged_is_not_counted(folder):
    (folder / "c.unchanged").touch()
    lines: list[str] = []
    outcome = run_side_by_side(folder, 1, 0, lines.append)
    assert outcome.done == ["a", "b1", "b2", "b3"] and not outcome.blocked and lines[-1] == "4 of 5: result of b3"


def test_a_failing_stage_stops_only_those_that_need_it(folder):
    (folder / "b2.sh").write_text("echo 'Traceback'; echo 'error: the disk is full'; echo 'ERROR: failed'; exit 1")
    lines: list[str] = []
    outcome = run_side_by_side(folder, 2, 0, lines.append)
    assert sorted(outcome.done) == ["a", "b1", "b3"] and outcome.blocked == ["c"]
    assert list(outcome.failed) == ["b2"] and outcome.failed["b2"].startswith("error: the disk is full (")
    assert "b2.log" in outcome.failed["b2"] and any(line.startswith("b2 failed: error: ") for line in lines)
    (folder / "b2.sh").unlink()
    assert sorted(run_side_by_side(folder, 2, 0, print).done) == ["b2", "c"]


def test_a_stage_waits_while_another_command_holds_the_lock(folder, monkeypatch):
    monkeypatch.setattr("lm.studies.dvc.RETRY_SECONDS", 0.01)
    (folder / "b1.sh").write_text("[ -e tried ] || { touch tried; echo 'ERROR: Unable to acquire lock'; exit 1; }")
    outcome = run_side_by_side(folder, 2, 0, print)
    assert not outcome.failed and "b1" in outcome.done


def test_jobs_share_the_processor_and_the_gpus(folder, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    for name in ("b1", "b2", "b3"):
        (folder / f"{name}.sh").write_text("sleep 0.3")
    run_side_by_side(folder, 3, 2, print)
    lines = dict(line.split(maxsplit=1) for line in (folder / "started").read_text().splitlines())
    assert all(value.split()[0] == "4" for value in lines.values())
    assert sorted(lines[name].split()[1] for name in ("b1", "b2", "b3")) == ["0", "0", "1"]


def test_only_the_gpus_that_the_user_chose_are_used(folder, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    for name in ("b1", "b2", "b3"):
        (folder / f"{name}.sh").write_text("sleep 0.3")
    run_side_by_side(folder, 2, 2, print)
    assert {line.split()[2] for line in (folder / "started").read_text().splitlines()} == {"5", "7"}


def test_a_stage_that_is_always_changed_runs_once(folder):
    (folder / "b1.sh").write_text("trap 'rm -f b1' EXIT")
    outcome = run_side_by_side(folder, 1, 0, print)
    assert started(folder).count("b1") == 1 and "c" in outcome.done


def test_the_users_own_number_of_threads_stays(folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    run_side_by_side(folder, 2, 1, print)
    assert {tuple(line.split()[1:]) for line in (folder / "started").read_text().splitlines()} == {("7",)}


def test_a_longer_stage_starts_first():
    small, large, other = "cell@muon-64x2-25000-1", "cell@muon-64x2-400000-1", "train_bpe"
    assert work(large) == 16 * work(small) > work(small) > 0
    assert work("cell@muon-128x2-25000-1") > 2 * work(small)
    assert 0 < work(other) < work(large)
    assert work("sweep@no-norm-64x2-400000-0.01") == work("scale@64x2-400000-1") == work(large)


def test_a_folder_without_a_pipeline_and_a_pipeline_that_dvc_cannot_read(folder, tmp_path):
    with pytest.raises(UserError, match="dvc.yaml: there is no such file; expected the folder of a study"):
        run_side_by_side(tmp_path, 1, 0, print)
    program = tmp_path / "bin/dvc"
    program.write_text("#!/bin/sh\nprintf 'ERROR: dvc.yaml is invalid.\\n\\nLine 2' >&2; exit 251\n")
    with pytest.raises(UserError) as caught:
        run_side_by_side(folder, 1, 0, print)
    assert str(caught.value) == (
        f"{folder}: dvc dag --dot dvc.yaml: dvc.yaml is invalid. Line 2; correct it and run the same command again"
    )
    program.write_text("#!/bin/sh\necho \"ERROR: './dvc.lock' is invalid (possible merge conflicts).\" >&2; exit 251\n")
    with pytest.raises(
        UserError, match=r"conflicts\)\.; keep either version of the file \(git checkout --ours dvc.lock\)"
    ):
        run_side_by_side(folder, 1, 0, print)


def test_a_pipeline_without_stages_is_refused(folder):
    (folder / "dag").write_text('strict digraph {\n"../../dvc.yaml:a";\n}')  # so DVC shows those of other pipelines
    with pytest.raises(UserError, match=r"dvc\.yaml: expected stages, got none; restore the file"):
        run_side_by_side(folder, 1, 0, print)


@pytest.mark.parametrize(
    ("commands", "message"),
    [
        ("echo 'Traceback'; echo 'RuntimeError: overflow'", "RuntimeError: overflow ("),
        ("", "it wrote no message and exited with status -9 ("),
        (
            "echo 'train: 3 s'; echo \"ERROR: failed to reproduce 'b2': output 'x' does not exist\"",
            "ERROR: failed to rep",
        ),
    ],
)
def test_a_stage_that_fails_without_an_error_of_its_own_says_why(folder, commands, message):
    dvc = "echo \"ERROR: failed to reproduce 'b2': failed to run: python -m b2, exited with -9\""
    end = "" if "does not exist" in commands else f"; {dvc}"
    (folder / "b2.sh").write_text(f"{commands or ':'}{end}; exit 1")
    assert run_side_by_side(folder, 2, 0, print).failed["b2"].startswith(message)


def test_an_environment_without_dvc_is_named(folder, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="dvc: there is no such command; activate the environment"):
        run_side_by_side(folder, 1, 0, print)


@pytest.mark.parametrize(
    ("number", "ignored"),
    [
        (signal.SIGINT, signal.SIGHUP),
        (signal.SIGTERM, signal.SIGINT),  # as in the background of a shell script
        (signal.SIGHUP, signal.SIGINT),
    ],
)
def test_an_interruption_reaches_all_jobs_and_nothing_stays_behind(folder, number, ignored):
    for name in ("b1", "b2"):
        (folder / f"{name}.sh").write_text(
            f"trap 'sleep 0.2; touch {name}.saved; exit 1' INT; touch {name}.on; sleep 60 & wait"
        )
    program = f"""
import signal
from pathlib import Path
from lm.studies.side_by_side import run_side_by_side
signal.signal({int(ignored)}, signal.SIG_IGN)
try:
    run_side_by_side(Path({str(folder)!r}), 2, 0, print)
except KeyboardInterrupt:
    print("interrupted")
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not all((folder / f"{name}.on").exists() for name in ("b1", "b2")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(ignored)
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert output.endswith("interrupted\n")
    assert (folder / "b1.saved").exists() and (folder / "b2.saved").exists()
    assert started(folder) == ["a"]


@pytest.fixture
def dvc_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The DVC beside the interpreter of the tests, also where the environment is not activated."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.slow  # 42 stages of DVC
@pytest.mark.usefixtures("dvc_itself")
def test_forty_cells_with_dvc_itself(tmp_path):
    stages = {
        "data": {"cmd": "echo 1 > data.txt", "outs": ["data.txt"]},
        "cell": {
            "matrix": {"variant": ["a", "b"], "seed": list(range(20))},
            "cmd": "echo ${item.seed} > ${item.variant}-${item.seed}.txt",
            "deps": ["data.txt"],
            "outs": ["${item.variant}-${item.seed}.txt"],
        },
        "table": {
            "cmd": "cat *-*.txt > table.txt",
            "deps": [f"{variant}-{seed}.txt" for variant in "ab" for seed in range(20)],
            "outs": ["table.txt"],
        },
    }
    YAML().dump({"stages": stages}, tmp_path / "dvc.yaml")
    for command in ("git init -q", "dvc init -q"):
        subprocess.run(command.split(), cwd=tmp_path, check=True)
    outcome = run_side_by_side(tmp_path, 4, 0, lambda line: None)
    assert len(outcome.done) == 42 and not outcome.failed
    assert len((tmp_path / "table.txt").read_text().split()) == 40
    status = subprocess.run(["dvc", "status", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert status.stdout.strip() == "{}"
    assert run_side_by_side(tmp_path, 4, 0, print).done == []


@pytest.mark.slow  # two repositories, each with stages of DVC
@pytest.mark.usefixtures("dvc_itself")
def test_two_machines_each_train_half_and_share_the_results(tmp_path):
    origin = tmp_path / "origin"
    origin.mkdir()
    (origin / "code.py").write_text("")
    cell = {
        "matrix": {"seed": [1, 2]},
        "cmd": "mkdir -p cells && pwd > cells/${item.seed}.txt",
        "deps": ["code.py"],
        "outs": ["cells/${item.seed}.txt"],
    }
    table = {"cmd": "cat cells/*.txt > table.txt", "deps": ["cells"], "outs": ["table.txt"]}
    YAML().dump({"stages": {"cell": cell, "table": table}}, origin / "dvc.yaml")

    def run(folder: Path, command: str) -> None:
        author = {
            "GIT_AUTHOR_NAME": "x",
            "GIT_AUTHOR_EMAIL": "x",
            "GIT_COMMITTER_NAME": "x",
            "GIT_COMMITTER_EMAIL": "x",
        }
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True, env=os.environ | author)

    remote = tmp_path / "remote"
    for command in (
        "git init -q",
        "dvc init -q",
        f"dvc remote add -d storage {remote}",
        "git add -A",
        "git commit -qm x",
    ):
        run(origin, command)
    machines = [tmp_path / "one", tmp_path / "two"]
    for seed, machine in enumerate(machines, start=1):
        run(tmp_path, f"git clone -q origin {machine.name}")
        assert run_side_by_side(machine, 1, 0, print, only=f"cell@{seed}").done == [f"cell@{seed}"]
        run(machine, "dvc push --run-cache")
    for machine in machines:
        run(machine, "dvc fetch --run-cache")
        run_side_by_side(machine, 1, 0, print, pull=True)
        assert (machine / "table.txt").read_text().split() == [str(folder) for folder in machines]
