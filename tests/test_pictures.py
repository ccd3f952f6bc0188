import re
from xml.etree import ElementTree

from matplotlib.figure import Figure

from lm.pictures import svg


def figure():
    figure = Figure(figsize=(4, 3))
    axes = figure.subplots()
    axes.plot([1, 2], [3, 4], marker="o", label="a <b>")
    axes.legend()
    axes.grid()
    return figure


def test_a_figure_is_an_element_with_text_and_a_description():
    element = ElementTree.fromstring(svg(figure(), "loss", 'falls to "1" & <0>'))
    assert (element.get("role"), element.get("aria-label")) == ("img", 'falls to "1" & <0>')
    texts = ["".join(node.itertext()).strip() for node in element.iter("{http://www.w3.org/2000/svg}text")]
    assert "a <b>" in texts


def test_the_page_chooses_colors_and_fonts_and_no_policy_forbids_the_element():
    text = svg(figure(), "loss", "")
    assert 'stroke="var(--c0)"' in text and "#" not in re.sub(r'(href="|url\()#', "", text)
    assert "style=" not in text and "<style" not in text and "font-family" not in text


def test_ids_belong_to_one_figure_and_every_reference_has_a_target():
    first, second = svg(figure(), "loss", ""), svg(figure(), "other", "")
    ids = [re.findall(r' id="([^"]+)"', text) for text in (first, second)]
    assert ids[0] and not set(ids[0]) & set(ids[1])
    assert len(set(ids[0])) == len(ids[0])
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', first)) == set(ids[0])


def test_the_same_figure_gives_the_same_text():
    assert svg(figure(), "loss", "") == svg(figure(), "loss", "")
