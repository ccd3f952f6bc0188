import json
import platform

import pytest
import torch
from ruamel.yaml import YAML

from lm.report import environment
from lm.report.blocks import Facts, Missing, Table
from lm.report.commit import Commit
from lm.report.environment import ENVIRONMENT
from lm.report.page import FilledSection, fill
from lm.report.run import Run

# FLOPs per token of the preset laptop with 300 tokens: 6 per weight of 2 blocks (4 · 128² + 3 · 128 · 344) and the head
# (128 · 300), and 12 · 2 · 128 per position of the window, of which a quarter has 64 and the others 320.
FLOPS = 6 * (2 * (4 * 128**2 + 3 * 128 * 344) + 128 * 300) + 12 * 2 * 128 * (0.25 * 64 + 0.75 * 320)


@pytest.fixture(autouse=True)
def known_machine(monkeypatch):
    monkeypatch.setattr(environment, "processor", lambda: "A CPU")
    monkeypatch.setattr(environment, "cores", lambda: 2)
    monkeypatch.setattr(environment, "product_speed", lambda dtype: 1e10 if dtype == torch.float32 else 1e9)
    monkeypatch.setattr(environment, "read_commit", lambda folder: Commit("0123456789abcdef", []))
    monkeypatch.setattr(environment, "_today", lambda: "2020-02-20")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def section(run: Run) -> FilledSection:
    (filled,) = fill(run, "Title", [ENVIRONMENT]).sections
    return filled


def change(run: Run, **sections: dict) -> None:
    yaml = YAML(typ="safe")
    path = run.folder / "params.yaml"
    params = yaml.load(path)
    for name, values in sections.items():
        params[name].update(values)
    yaml.dump(params, path)


def write_times(run: Run, **files: dict[str, float]) -> None:
    folder = run.folder / "data" / ".timing"
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))


def test_the_finding_says_when_where_and_from_which_commit(planned_run, monkeypatch):
    made = "This report was made on 2020-02-20"
    software = f"with Python {platform.python_version()} and PyTorch {torch.__version__}"
    assert section(planned_run).finding == f"{made} from commit 01234567, {software}, on A CPU with 2 cores."
    monkeypatch.setattr(environment, "read_commit", lambda folder: None)
    assert section(planned_run).finding == f"{made}, {software}, on A CPU with 2 cores."


def test_the_commit_is_clean_or_has_changes_or_there_is_none(planned_run, monkeypatch):
    def facts():
        block = section(planned_run).blocks[1]
        assert isinstance(block, Facts)
        return dict(block.rows)

    assert facts()["commit"] == "0123456789abcdef" and facts()["state"] == "clean"
    monkeypatch.setattr(environment, "read_commit", lambda folder: Commit("0123456789abcdef", ["lm", "params.yaml"]))
    assert facts()["state"] == "with changes in lm, params.yaml"
    monkeypatch.setattr(environment, "read_commit", lambda folder: None)
    assert facts()["commit"].startswith("none: ") and "state" not in facts()


def test_parameters_that_differ_from_the_preset(planned_run):
    assert isinstance(section(planned_run).blocks[-2], Missing)
    change(planned_run, model={"num_layers": 3, "norm": "none"})
    differing, others = section(planned_run).blocks[-2:]
    assert isinstance(differing, Table) and isinstance(others, Table)
    assert differing.title == "Parameters that differ from the preset laptop"
    assert differing.rows == [("model.num_layers", "2", "3")]
    assert "norm: none; norm_position: pre" in dict(others.rows)["model"]
    assert not {"ablate", "scale"} & dict(others.rows).keys()


def test_times_and_the_share_of_what_the_processor_can_do(encoded_run):
    write_times(
        encoded_run,
        train_bpe={"seconds": 0.25, "bytes_per_second": 4e7},
        train={"seconds": 540.0, "tokens_per_second": 1000.4},
    )
    times = section(encoded_run).blocks[2]
    assert isinstance(times, Table)
    assert times.rows == [("train_bpe", "0.25 s", "40 MB/s"), ("train", "9 min", "1,000 tokens/s")]
    assert f"computes {FLOPS / 1e6:.2f} MFLOP per token, {FLOPS / 1e6:.2f} GFLOP/s: 34% of the 10 GFLOP/s" in times.note


def test_the_share_of_the_peak_of_all_gpus(encoded_run, monkeypatch):
    monkeypatch.setattr(environment, "pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(environment, "peak_flops", lambda device, precision: {"float32": 1e9}[precision])
    change(encoded_run, runtime={"num_processes": 2})
    write_times(encoded_run, train={"seconds": 5.0, "tokens_per_second": 100.0})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    filled = section(encoded_run)
    assert filled.finding.endswith(", on 2 × A GPU.")
    times = filled.blocks[2]
    assert f"{FLOPS * 100 / 2e9:.0%} of the peak in float32, 2 GFLOP/s" in times.note
    monkeypatch.setattr(environment, "peak_flops", lambda device, precision: None)
    assert "The peak speed of this device is not known." in section(encoded_run).blocks[2].note


def test_without_times_the_rest_is_shown(planned_run):
    blocks = section(planned_run).blocks
    assert [type(block) for block in blocks] == [Facts, Facts, Missing, Missing, Table]
    assert "data/.timing: no times" in blocks[2].message


def test_the_page_names_no_person_no_host_and_no_path(encoded_run):
    change(
        encoded_run,
        data={"train_files": ["/srv/zaphod/a.txt", "https://zaphod.example/b.txt"]},
        train={"initial_model": "/srv/zaphod/model"},
        runtime={"cluster": "zaphod:6379"},
    )
    write_times(encoded_run, train={"seconds": 540.0, "tokens_per_second": 1000.0})
    page = fill(encoded_run, "Title", [ENVIRONMENT]).html()
    assert "zaphod" not in page and str(encoded_run.folder) not in page
    assert page.count("(not shown)") == 4
