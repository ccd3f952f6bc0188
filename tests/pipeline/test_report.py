"""The report of a real run: all of it, a part of it, two experiments, and how it looks in a browser."""

import shutil

import pytest

from lm.report.blocks import Missing
from lm.report.page import FilledSection, Report
from lm.report.run import Run
from lm.report.write import SECTIONS, make_report, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def missing(section: FilledSection) -> list[str]:
    """What a section says is missing, apart from GPT-2's tokenizer, which the pipeline does not have."""
    return [block.message for block in section.blocks if isinstance(block, Missing) and "--gpt2" not in block.message]


@pytest.fixture(scope="module")
def report(pipeline) -> Report:
    return make_report(Run(pipeline))


def test_the_last_stage_reports_on_everything(pipeline):
    html = (pipeline / "metrics/report.html").read_text()
    for section in SECTIONS:
        assert f'<section id="{section.name}"' in html
    for name in ("losses", "bytes-per-token", "excess", "parameters-by-part"):
        assert (pipeline / f"metrics/report/{name}.png").stat().st_size > 0
    assert "metrics/report.html" in (pipeline / "dvc.lock").read_text()
    assert len(html.encode()) < 2_000_000


def test_nothing_is_missing_after_a_whole_run(report):
    for section in report.sections:
        # This small pipeline has stories of a few tokens, nothing but a baseline, and too few runs for a scaling law.
        if section.name not in ("attention", "ablation", "scaling"):
            assert section.finding and missing(section) == []


def test_the_same_results_give_the_same_files(report, pipeline, tmp_path):
    write_report(report, tmp_path / "report.html")
    for path in (tmp_path / "report.html", tmp_path / "report.md", *(tmp_path / "report").iterdir()):
        assert path.read_bytes() == (pipeline / "metrics" / path.relative_to(tmp_path)).read_bytes(), path.name


def test_the_page_names_neither_the_machine_nor_the_folder(pipeline):
    html = (pipeline / "metrics/report.html").read_text()
    assert "tokens/s" not in html and str(pipeline) not in html and 'id="environment"' not in html
    assert 'id="environment"' in make_report(Run(pipeline, timing=True)).html()


def test_a_run_in_part_gets_a_report_of_that_part(pipeline, tmp_path):
    folder = tmp_path / "part"
    (folder / "metrics").mkdir(parents=True)
    shutil.copy(pipeline / "params.yaml", folder)
    for name in ("metrics/download.json", "metrics/tokenizer.json", "metrics/tokens.json"):
        shutil.copy(pipeline / name, folder / name)
    for name in ("tokenizer", "tokens"):
        shutil.copytree(pipeline / "data" / name, folder / "data" / name)
    report = make_report(Run(folder))
    sections = {section.name: section for section in report.sections}
    for name in ("data", "tokenizer", "model"):
        assert missing(sections[name]) == []
    for name, command in {
        "training": "dvc repro train",
        "evaluation": "dvc repro evaluate",
        "attention": "dvc repro",
        "samples": "dvc repro train",
        "ablation": "lm cells",
        "scaling": "dvc repro scaling_law",
    }.items():
        messages = missing(sections[name])
        assert messages and command in messages[0] and str(folder) not in messages[0]
    assert "dvc repro train" in report.html()


@pytest.mark.slow  # starts a process that makes the whole report
def test_the_console_shows_the_findings(run):
    shown = run("python", "-m", "lm", "report").stdout
    assert "Tokenizer" in shown and "bytes of text on average" in shown
    assert shown.endswith("The report: metrics/report.html\n")


@pytest.mark.slow  # trains once more
def test_experiments_side_by_side(changed, run):
    run("dvc", "exp", "run", "-q", "-n", "no-norm", "-S", "model.norm=none", "-S", "train.max_steps=3", "sample")
    run("git", "checkout", "-q", "--", ".")
    run("dvc", "checkout", "-q", "--force")
    shown = run("python", "-m", "lm", "report", "workspace", "no-norm", "--out", "out/comparison.html").stdout
    assert "The loss of" in shown
    html = (changed / "out/comparison.html").read_text().replace("<wbr>", "")
    for part in (
        "model.norm",
        "rmsnorm",
        "dvc params diff workspace no-norm",
        "no-norm: train",
        "document_bits_per_byte",
    ):
        assert part in html
    failed = run("python", "-m", "lm", "report", "workspace", "nothing", fails=True)
    assert failed.stderr == (
        "error: 'nothing': there is no such experiment, branch or commit; list them with: dvc exp show\n"
    )


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(pipeline, width, scheme):
    """No request, no error, nothing wider than the page, and nothing that axe-core objects to, such as contrast."""
    sync_api = pytest.importorskip("playwright.sync_api", exc_type=ImportError)
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", exc_type=ImportError)
    path = pipeline / "metrics/report.html"
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        requests, errors = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert (requests, errors) == ([path.as_uri()], [])
        found = axe.Axe().run(page).response["violations"]
        assert [(violation["id"], violation["nodes"][0]["html"]) for violation in found] == []
        assert len(page.pdf()) > 10_000
        browser.close()
