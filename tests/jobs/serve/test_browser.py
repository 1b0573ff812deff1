"""The pages in a real browser, headless Chromium, driven by the keyboard alone."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fastviz import jobs
from fastviz.jobs import report
from tests.jobs.common import photograph
from tests.jobs.serve.conftest import TOKEN

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
uvicorn = pytest.importorskip("uvicorn")
CHROMIUM = os.environ.get("FASTVIZ_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is found (FASTVIZ_CHROMIUM names one)")

SLOW = 120_000
"""Milliseconds to wait for a page: the machine may be busy."""


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
            ],
            timeout=SLOW,
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser) -> Iterator[sync_api.Page]:
    """A page, whose errors and requests to other hosts fail the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    page = context.new_page()
    page.set_default_timeout(SLOW)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: _own(request.url) or wrong.append(request.url))
    yield page
    context.close()
    assert not wrong


def _own(url: str) -> bool:
    return url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:"))


@contextmanager
def serving(app) -> Iterator[str]:
    """A server that runs, and its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


# named before `page` by tests, so that the page ends before the server
@pytest.fixture
def address(app) -> Iterator[str]:
    with serving(app) as address:
        yield address


def until(page, expression: str) -> None:
    """Wait until ``expression`` holds; playwright's own way evaluates text in the page, which the page forbids."""
    ends = time.monotonic() + SLOW / 1000
    while not page.evaluate(expression):
        assert time.monotonic() < ends, expression
        page.wait_for_timeout(50)


def focused(page) -> str:
    """What a screen reader calls the element that has the focus."""
    return page.evaluate(
        "() => { const e = document.activeElement; return e.getAttribute('aria-label') "
        "?? e.labels?.[0]?.textContent.trim() ?? e.textContent.trim(); }"
    )


def test_the_report_from_a_file(page, network, photos, tmp_path):
    (photos / "bad<img src=x onerror=alert(1)>.png").write_bytes(b"")
    for number in range(5, 120):
        photograph(photos / f"{number}.png", number % 7)
    out = tmp_path / "out"
    jobs.run([photos], out, model=network, methods=["saliency", "grad_cam"], thumbnails=True)
    page.goto(report.write(out).as_uri())
    until(page, "document.getElementById('count').textContent === '121 shown'")
    assert page.locator("#failed").inner_text() == "(1)"
    lines = page.locator("button.line")
    assert 5 < lines.count() < 100  # those in view, not all
    # by the keyboard: into the list, along it, to its end, an image opened and closed
    page.locator("#controls button[type=reset]").focus()
    page.keyboard.press("Tab")
    first = focused(page)
    assert first.endswith("Open")
    page.keyboard.press("ArrowRight")
    assert focused(page) != first
    page.keyboard.press("End")
    until(page, "document.activeElement.dataset.place === '120'")
    page.keyboard.press("Enter")
    assert page.locator("dialog[open] h2").inner_text() in focused_name(page)
    assert page.locator("dialog [role=img]").count() == 3
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Escape")
    until(page, "document.activeElement.dataset.place === '119'")
    # filters and views
    page.locator("#which").select_option("failed")
    until(page, "document.getElementById('count').textContent === '1 of 121 shown'")
    assert "bad<img" in page.locator("#space").inner_text()
    page.locator("#controls button[type=reset]").click()
    page.locator("#class").fill("cat")
    cats = sum(row["target_name"] == "cat" for row in jobs.open(out).rows(["target_name", "method"])) // 2
    until(page, f"document.getElementById('count').textContent.startsWith('{cats or 121} ') || {cats} === 0")
    page.locator("button[data-view=rows]").click()
    page.locator("button[data-view=charts]").click()
    assert page.locator("#charts table").count() >= 2
    assert page.locator("img[src=x]").count() == 0


def focused_name(page) -> str:
    return page.locator("#detail-name").inner_text()


def test_the_report_grows_while_a_job_goes_on(page, growing):
    photos, run, app = growing
    with serving(app) as address:
        page.goto(f"{address}/?token={TOKEN}")
        assert "token" not in page.url
        until(page, "document.getElementById('count').textContent === '5 shown'")
        photograph(photos / "later.png", 50)
        run()
        until(page, "document.getElementById('count').textContent === '6 shown'")
        assert page.locator("[aria-label^='later.png']").count() >= 1
        page.goto("about:blank")


def test_the_panel_by_keyboard(address, page):
    page.goto(f"{address}/panel?token={TOKEN}")
    page.locator("#camera").focus()
    page.keyboard.press("Tab")
    assert focused(page) == "photograph 0.png"
    page.keyboard.press("Enter")
    until(page, "document.getElementById('status').textContent.startsWith('finished')")
    cards = {card.get_attribute("data-card") for card in page.locator(".card").all()}
    assert {
        "guesses",
        "activations",
        "unit",
        "map-saliency",
        "map-guided_backprop",
        "map-grad_cam",
        "image-class",
    } <= cards
    for image in page.locator(".card img").all():
        assert image.get_attribute("alt")
        assert image.evaluate("image => image.complete && image.naturalWidth > 0")
    # another channel by its button, then another layer
    page.locator(".units button").nth(1).focus()
    page.keyboard.press("Enter")
    until(page, "document.querySelectorAll('.units button')[1].getAttribute('aria-pressed') === 'true'")
    channel = page.locator(".units button").nth(1).inner_text().split(":")[0]
    assert page.locator("#unit").input_value() == channel
    page.locator("#layer").focus()
    page.keyboard.press("ArrowUp")
    until(
        page,
        "document.querySelector('[data-card=activations] h2').textContent === "
        "`Activations of ${document.getElementById('layer').value}`",
    )
    # a class that is not there
    page.locator("#target").fill("unicorn")
    until(page, "document.querySelector('[data-card=guesses] .error')?.textContent.includes('unicorn')")


def test_every_control_has_a_name(address, page):
    for place in ("", "panel"):
        page.goto(f"{address}/{place}?token={TOKEN}")
        page.wait_for_timeout(500)
        unnamed = page.evaluate(
            "() => [...document.querySelectorAll('button, input:not([hidden]), select, [role=img], img')].filter(e =>"
            " !(e.getAttribute('aria-label') || e.labels?.length || e.textContent.trim() || e.hasAttribute('alt')))"
            ".map(e => e.outerHTML)"
        )
        assert not unnamed
        assert page.evaluate("document.documentElement.lang") == "en"
        assert page.locator("[aria-live=polite]").count() == 1


def test_a_file_and_the_camera(address, page, photos):
    page.goto(f"{address}/panel?token={TOKEN}")
    page.locator("#methods input").evaluate_all(
        "all => all.forEach(one => { one.checked = one.value === 'saliency'; })"
    )
    page.locator("#file").set_input_files(photos / "4.png")
    until(page, "document.getElementById('status').textContent.startsWith('finished')")
    (photos / "bad.png").write_bytes(b"no picture")
    answers: list[int] = []
    page.on("response", lambda response: answers.append(response.status))
    with page.expect_response("**/photo") as answer:
        page.locator("#file").set_input_files({"name": "huge.png", "mimeType": "image/png", "buffer": _png()})
    assert answer.value.status == 200
    until(page, "document.getElementById('status').textContent.startsWith('finished')")
    page.locator("#camera").press("Enter")
    until(page, "document.getElementById('hint').textContent === 'camera'")
    with page.expect_response("**/see"), page.expect_response("**/photo"):
        pass
    page.locator("#camera").press("Enter")
    until(page, "document.getElementById('camera').getAttribute('aria-pressed') === 'false'")


def _png() -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (300, 200), (9, 120, 30)).save(buffer, "PNG")
    return buffer.getvalue()
