"""The pages of `dvc plots`, in a real browser without a network: Chromium, if it is installed."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from lm.errors import UserError
from lm.report.dvc_plots import OFFLINE_TEMPLATE, TEMPLATE, write_offline_template
from lm.training.history import HistoryRow

PROJECT = Path(__file__).resolve().parents[2]
PIPELINE = YAML(typ="safe").load(PROJECT / "dvc.yaml")
FIGURES = {name: figure for entry in PIPELINE["plots"] for name, figure in entry.items()}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SETTINGS = "config", TEMPLATE, "plots/curve.json", "plots/losses.json"
RUNS = "base", "no-norm"
STEPS = 0, 8, 16
EMPTY_AT_STEP_0 = "train_loss", "grad_norm"


def tables(stage: str) -> list[dict]:
    """The plots of a stage that are tables, not pictures."""
    return [plot for plot in PIPELINE["stages"][stage]["plots"] if next(iter(plot)).endswith(".csv")]


@pytest.mark.parametrize("name", FIGURES)
def test_the_columns_and_templates_of_the_figures_exist(name):
    figure = FIGURES[name]
    assert {"title", "x_label", "y_label"} <= figure.keys()
    assert (PROJECT / f".dvc/plots/{figure['template']}.json").exists()
    ((path, columns),) = figure["y"].items()
    assert path == "metrics/train.csv"
    assert {figure["x"], *([columns] if isinstance(columns, str) else columns)} <= HistoryRow.__annotations__.keys()


def test_another_folder_is_refused(tmp_path):
    pytest.importorskip("vl_convert", exc_type=ImportError)
    with pytest.raises(UserError, match="plots.html: there is no such file; run this in the folder of the project"):
        write_offline_template(tmp_path)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a program in a repository with the settings and plots of this project, whose stages do nothing."""
    author = {f"GIT_{role}_{field}": "test" for role in ("AUTHOR", "COMMITTER") for field in ("NAME", "EMAIL")}
    for name, value in {**author, "DVC_NO_ANALYTICS": "1", "GIT_CONFIG_GLOBAL": os.devnull}.items():
        monkeypatch.setenv(name, value)
    for name in SETTINGS:
        (tmp_path / ".dvc" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROJECT / ".dvc" / name, tmp_path / ".dvc" / name)
    (tmp_path / "metrics").mkdir()
    stages = {stage: {"cmd": "true", "plots": tables(stage)} for stage in ("train", "ablation_table")}
    YAML().dump({"stages": stages, "plots": PIPELINE["plots"]}, tmp_path / "dvc.yaml")
    (tmp_path / "metrics/ablation.csv").write_text("variant,difference\nbaseline,0.0\nno-norm,0.25\n")

    def run(*command: str) -> None:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return run


def write_runs(folder: Path, run, floor: str) -> None:
    """Commit the curves of two runs, and tag the commits with their names."""
    run("git", "init", "-q")
    for scale, name in enumerate(RUNS, start=1):
        with (folder / "metrics/train.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(HistoryRow.__annotations__))
            writer.writeheader()
            for step in STEPS:
                row = dict.fromkeys(HistoryRow.__annotations__, 3.0 * scale / (1 + step))
                empty = {} if step else dict.fromkeys(EMPTY_AT_STEP_0, "")
                floors = {"floor_nats": floor, "floor_bits_per_byte": floor}
                writer.writerow({**row, **empty, **floors, "step": step, "continuation": f"once {name}"})
        run("git", "add", "-A")
        run("git", "commit", "-q", "-m", name)
        run("git", "tag", name)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    sync_api = pytest.importorskip("playwright.sync_api", exc_type=ImportError)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page without a network, with lists of its errors and requests."""
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.problems, page.requests = [], []
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    yield page
    context.close()


@pytest.mark.slow
@pytest.mark.parametrize("floor", ["0.1", ""], ids=["floor", "no-floor"])
def test_the_curves_of_two_runs_are_drawn_without_a_network(run, page, tmp_path, floor):
    pytest.importorskip("vl_convert", exc_type=ImportError)
    write_offline_template(tmp_path / ".dvc")
    (tmp_path / ".gitignore").write_text(f"/.dvc/config.local\n/.dvc/tmp\n/.dvc/{OFFLINE_TEMPLATE}\n")
    write_runs(tmp_path, run, floor)
    run(sys.executable, "-m", "dvc", "plots", "diff", *RUNS)
    url = (tmp_path / "dvc_plots/index.html").as_uri()
    page.goto(url)
    plots = page.locator("svg.marks")
    page.wait_for_function(f"document.querySelectorAll('svg.marks').length == {len(FIGURES) + 2}")
    assert page.requests == [url] and page.problems == []
    assert page.locator("#missing").is_hidden()

    shown = {plot.locator(".role-title-text").first.text_content(): plot for plot in plots.all()}
    assert {figure["title"] for figure in FIGURES.values()} < shown.keys()
    for figure in FIGURES.values():
        ((_, columns),) = figure["y"].items()
        columns = [columns] if isinstance(columns, str) else columns
        drawn = [column for column in columns if floor or "floor" not in column]
        num_points = sum(len(STEPS) - (column in EMPTY_AT_STEP_0) for column in drawn)
        plot = shown[figure["title"]]
        assert plot.locator(".mark-line path").count() == len(RUNS) * len(drawn), figure["title"]
        assert plot.locator(".mark-symbol.role-mark path").count() == len(RUNS) * num_points, figure["title"]
        labels = plot.locator(".role-axis-title").all_text_contents()
        assert set(labels) == {figure["x_label"], figure["y_label"]}
    bars = shown[tables("ablation_table")[0]["metrics/ablation.csv"]["title"]].locator(".mark-rect.role-mark path")
    assert bars.count() == 2 * len(RUNS)


@pytest.mark.slow
def test_a_page_that_cannot_load_its_scripts_says_what_to_do(run, page, tmp_path):
    write_runs(tmp_path, run, "0.1")
    run(sys.executable, "-m", "dvc", "plots", "diff", *RUNS)
    page.goto((tmp_path / "dvc_plots/index.html").as_uri())
    assert page.locator("#missing").is_visible()
    assert "python -m lm.report.dvc_plots" in page.locator("#missing").inner_text()
    assert all(problem.startswith("Failed to load resource") for problem in page.problems)
