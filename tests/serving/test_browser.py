"""The page in a real browser: Chromium, if it is installed."""

import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api", exc_type=ImportError)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")]
TIMEOUT = 20_000.0  # milliseconds; only a machine that is busy with other work needs so long


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, serving, alphabet, tmp_path):
    """The page of the model `alphabet`. The test fails if the browser's console shows an error."""
    (tmp_path / "train.csv").write_text("step,train_loss,val_loss\n0,,4.0\n50,3.0,2.0\n")
    with serving(alphabet, metrics=tmp_path) as server:
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        page.set_default_timeout(TIMEOUT)
        errors: list[str] = []
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server.url)
        yield page
        page.close()
        client_error = "Failed to load resource"  # how the browser reports a status of 4xx
        assert [error for error in errors if not error.startswith(client_error)] == []


def test_the_text_appears_while_it_is_generated(page, alphabet, slowed):
    page.fill("#prompt", "012")
    page.fill("input[name=max_tokens]", "200")
    page.click("#generate")
    tokens = page.locator("#text .token")
    tokens.nth(2).wait_for()
    assert tokens.count() < 200
    sync_api.expect(page.locator("#status")).to_contain_text("200 tokens", timeout=TIMEOUT)
    assert page.locator("#text").inner_text().startswith("01234567890123")
    assert tokens.count() == 200


def test_hovering_over_a_token_shows_the_alternatives(page, tmp_path):
    page.fill("#prompt", "uv")
    page.locator("#prompt").press("Control+Enter")
    sync_api.expect(page.locator("#status")).to_contain_text("end of text", timeout=TIMEOUT)
    page.locator("#text .token").first.hover()
    rows = page.locator("#tip div")
    assert rows.count() == 5
    assert rows.first.inner_text().split() == ["w", "98.9%"]  # e^10 / (e^10 + 256)
    assert "sampled" in rows.first.get_attribute("class")
    picture = tmp_path / "page.png"
    page.screenshot(path=picture)
    assert picture.stat().st_size > 10_000
    page.mouse.move(0, 0)
    sync_api.expect(page.locator("#tip")).to_be_hidden()


def test_tokens_can_be_selected_with_the_keyboard(page):
    page.fill("#prompt", "w")
    page.locator("#prompt").press("Control+Enter")
    sync_api.expect(page.locator("#status")).to_contain_text("end of text", timeout=TIMEOUT)
    text = page.locator("#text")
    text.press("ArrowRight")
    text.press("ArrowRight")
    assert page.locator(".token.selected").inner_text() == "y"
    text.press("ArrowLeft")
    assert page.locator(".token.selected").inner_text() == "x"
    text.press("Escape")
    sync_api.expect(page.locator("#tip")).to_be_hidden()


def test_stop_ends_the_text(page, alphabet, slowed):
    page.fill("#prompt", "0")
    page.fill("input[name=max_tokens]", "256")
    page.click("#generate")
    page.locator("#text .token").nth(2).wait_for()
    page.click("#stop")
    sync_api.expect(page.locator("#status")).to_contain_text("stopped", timeout=TIMEOUT)
    assert page.locator("#text .token").count() < 256
    assert page.locator("#generate").is_enabled()


def test_an_error_is_shown(page):
    page.fill("#prompt", "0" * 300)
    with page.expect_response("**/v1/completions") as response:
        page.click("#generate")
    assert response.value.status == 400
    sync_api.expect(page.locator("#status")).to_contain_text("expected at most 256 tokens, got 301", timeout=TIMEOUT)


def test_prompt_and_text_are_never_markup(page):
    page.fill("#prompt", "<img src=x onerror=alert(1)>")
    page.click("#generate")
    sync_api.expect(page.locator("#status")).to_contain_text("tokens", timeout=TIMEOUT)
    assert page.locator("#text img").count() == 0
    assert page.locator("#text .prompt").inner_text() == "<img src=x onerror=alert(1)>"


def test_the_curve_is_drawn(page):
    curve = page.get_by_role("img", name="Loss in nats per token at step 50: train 3, val 2")
    assert curve.locator("text", has_text="val, windows").count() == 1
    assert curve.bounding_box()["width"] > 400


@pytest.mark.parametrize("width", [360, 768, 1600])
def test_nothing_overflows_the_window(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    page.fill("#prompt", "0" * 200)
    page.click("#generate")
    sync_api.expect(page.locator("#status")).to_contain_text("seed", timeout=TIMEOUT)
    page.locator("#text .token").last.hover()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
