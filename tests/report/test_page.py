import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from lm.errors import UserError
from lm.report.blocks import Diagram, Facts, Layer, Missing, Plot, Section, Span, Table, Text, Tokens
from lm.report.page import fill
from lm.report.run import Run

EVIL = "</div><script>alert(1)</script>{{ title }}"


def figure():
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([1, 2])
    return figure


BLOCKS = [
    Facts(title=EVIL, rows=[(EVIL, EVIL)], note=EVIL, command=EVIL),
    Table(header=(EVIL, EVIL), rows=[(EVIL, EVIL)]),
    Plot(name="loss", alt=EVIL, figure=figure()),
    Text(text=EVIL),
    Tokens(spans=[Span(text=EVIL), Span(text=EVIL, weight=0.5), Span(text=EVIL, mark=True)], style="weights"),
    Diagram(layers=[Layer(name=EVIL, shape=EVIL, parameters=1, layers=[Layer(name=EVIL)])]),
    Missing(message=EVIL),
]


def report(tmp_path, *makers, finding=lambda run: "A finding."):
    return fill(Run(tmp_path), "Title", [Section("data", "Data", finding, makers)])


class Elements(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_text_is_never_markup_and_the_page_has_no_script(tmp_path):
    html = report(tmp_path, lambda run: BLOCKS, finding=lambda run: EVIL).html()
    assert "script" not in {tag for tag, _ in Elements(html).found}
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;{{ title }}") >= 16


def test_the_page_loads_nothing(tmp_path):
    html = report(tmp_path, lambda run: BLOCKS).html()
    for tag, attributes in Elements(html).found:
        assert "src" not in attributes and tag not in ("iframe", "object", "base", "img")
        assert re.match(r"#|data:", attributes.get("href", "#"))
        assert attributes.get("xlink:href", "#").startswith("#")
    assert "@import" not in html and not re.search(r"url\((?!#)", html)
    assert "default-src 'none'" in html


def test_every_section_has_a_heading_and_a_link(tmp_path):
    found = Elements(report(tmp_path, lambda run: BLOCKS).html()).found
    sections = [attributes for tag, attributes in found if tag == "section"]
    links = [attributes["href"] for tag, attributes in found if tag == "a"]
    headings = [attributes["id"] for tag, attributes in found if tag == "h2"]
    assert links == [f"#{section['id']}" for section in sections]
    assert headings == [section["aria-labelledby"] for section in sections]


def test_a_missing_file_hides_only_what_needs_it(tmp_path):
    def missing(run):
        raise UserError("metrics/train.json: there is no such file; make it with: dvc repro train")

    made = report(tmp_path, missing, lambda run: [Text(text="still here")], missing, finding=missing)
    (section,) = made.sections
    assert section.finding == ""
    assert [block.kind for block in section.blocks] == ["missing", "text"]
    assert "dvc repro train" in made.html() and "still here" in made.html()


def test_the_folder_of_the_run_is_not_shown(tmp_path):
    made = report(tmp_path, lambda run: [Text(text=str(run.curve))])
    assert str(tmp_path) not in made.html()
    assert "metrics/train.csv: there is no such file" in made.html()


def test_other_mistakes_are_not_hidden(tmp_path):
    def broken(run):
        raise KeyError("x")

    with pytest.raises(KeyError):
        report(tmp_path, broken)


def test_the_same_report_gives_the_same_files(tmp_path):
    made = report(tmp_path, lambda run: BLOCKS)
    written = []
    for name in "ab":
        made.write_markdown(tmp_path / name / "report.md")
        folder = tmp_path / name
        written.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")})
    assert written[0] == written[1] and len(written[0]) == 2
    assert made.html() == made.html()


def test_a_long_name_continues_after_a_dot_or_an_underscore(tmp_path):
    table = Table(header=("parameter", "here"), rows=[("train.max_steps<b>", "a_file.txt"), ("_the", "1")])
    html = report(tmp_path, lambda run: [table]).html()
    assert "<td>train.<wbr>max_<wbr>steps&lt;b&gt;</td><td>a_file.txt</td>" in html
    assert "<td>_the</td>" in html
