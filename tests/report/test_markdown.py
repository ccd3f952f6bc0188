import pytest

from lm.report.blocks import Facts, Layer, Missing, Span, Table, Text, Tokens
from lm.report.markdown import cell, outline, quoted, render, spans, text
from lm.report.page import FilledSection


@pytest.mark.parametrize(
    ("written", "escaped"),
    [
        ("0.1270 bits per byte, so-called.", "0.1270 bits per byte, so-called."),
        ("<b> *x* _y_ `z` [a](b) | & ~", r"\<b\> \*x\* \_y\_ \`z\` \[a\](b) \| \& \~"),
        ("# no heading\n- no item\n1. nor this", "\\# no heading\n\\- no item\n1\\. nor this"),
    ],
)
def test_nothing_in_a_text_is_markup(written, escaped):
    assert text(written) == escaped


def test_a_cell_is_one_line():
    assert cell("a\n b | c") == r"a b \| c"


def test_a_quotation_keeps_its_lines():
    assert quoted("a\n\n# b") == "> a  \n>   \n> \\# b  "


def test_tokens_are_separated_and_marks_are_bold():
    both = (Span(text="Once"), Span(text=" upon", mark=True))
    assert spans(Tokens(spans=both, style="pieces")) == "> Once ·  **upon**"


def test_layers_are_a_nested_list():
    layers = [Layer(name="block", layers=[Layer(name="attn", shape="(T, 8)", parameters=1024)])]
    assert outline(layers) == "- block\n  - attn: (T, 8), 1,024 parameters"


def test_a_report_by_hand():
    blocks = [
        Facts(rows=[("bytes", "1 MB")], command="dvc repro download"),
        Table(title="Table", header=("a", "b"), rows=[("x|", "1")]),
        Text(text="<script>"),
        Missing(message="nothing"),
    ]
    section = FilledSection("data", "Data", "It is text.", blocks)
    assert render("Title", [section], "report") == (
        "# Title\n\n## Data\n\nIt is text.\n\n| | |\n|---|---|\n| bytes | 1 MB |\n\nFrom `dvc repro download`\n\n"
        "### Table\n\n| a | b |\n|---|---:|\n| x\\| | 1 |\n\n> \\<script\\>  \n\nnothing\n"
    )
