import dataclasses
import json
import re
from html.parser import HTMLParser

import pytest

from lm.serving.page import Page


class Elements(HTMLParser):
    """All elements with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


@pytest.fixture
def page(served, random_model, tmp_path):
    return Page(served(random_model, tmp_path))


def settings(html: str) -> dict:
    return json.loads(re.search(r'id="settings">(.*?)</script>', html, re.DOTALL)[1])


def test_the_page_shows_the_model_and_the_default_settings(page, random_model):
    html, _ = page.render()
    facts = dict(re.findall(r"<dt>(\w+)</dt><dd>(.*?)</dd>", html))
    assert facts.keys() == {"parameters", "vocab_size", *dataclasses.asdict(random_model.config)}
    assert (facts["vocab_size"], facts["context_length"], facts["norm"]) == ("257", "128", "rmsnorm")
    assert facts["rope_theta"] == "10,000"
    assert settings(html)["defaults"] == {
        "prompt": "abc", "temperature": 0.0, "top_k": 0, "top_p": 0.95, "min_p": 0.0, "repetition_penalty": 1.0,
        "max_tokens": 20,
    }  # fmt: skip


def test_every_setting_has_a_control(page):
    html, _ = page.render()
    names = {attributes["name"] for tag, attributes in Elements(html).found if tag == "input"}
    assert names == settings(html)["defaults"].keys() - {"prompt"} | {"seed"}


def test_the_page_loads_nothing_from_elsewhere(page):
    html, policy = page.render()
    for tag, attributes in Elements(html).found:
        assert not {"src", "style", "onclick"} & attributes.keys()
        assert tag not in ("iframe", "object", "base")
        assert attributes.get("href", "data:").startswith("data:")
        if tag == "style" or (tag == "script" and attributes.get("type") != "application/json"):
            assert f"'nonce-{attributes['nonce']}'" in policy
    assert "url(" not in html and "@import" not in html
    assert "default-src 'none'" in policy and "unsafe" not in policy


def test_the_nonce_is_new_for_every_response(page):
    assert page.render()[1] != page.render()[1]


def test_inserted_values_are_escaped(served, random_model, defaults, tmp_path):
    evil = "</script><script>alert(1)</script>{{curve}}"
    defaults = dataclasses.replace(defaults, prompts=[evil])
    html, _ = Page(dataclasses.replace(served(random_model, tmp_path), name=evil, defaults=defaults)).render()
    assert settings(html)["defaults"]["prompt"] == evil
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html
    assert html.count("no loss curve: ") == 1


def test_the_loss_curve_is_drawn_again_when_it_has_changed(page, tmp_path, monkeypatch):
    assert "train.csv: there is no such file" in page.render()[0]
    (tmp_path / "train.csv").write_text("step,train_loss,val_loss\n0,,4.0\n5,3.0,2.0\n")
    assert 'aria-label="Loss in nats per token at step 5: train 3, val 2"' in page.render()[0]
    with monkeypatch.context() as patch:
        patch.setattr("lm.serving.page.loss_curve", lambda path: "drawn again")
        assert "train 3, val 2" in page.render()[0]
        (tmp_path / "train.csv").write_text("step,train_loss,val_loss\n0,,4.0\n50,1.0,1.0\n")
        assert "drawn again" in page.render()[0]
