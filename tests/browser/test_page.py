"""A newcomer in a real browser rates three films and sees the list move, beside a real stream.

Runs examples/serve_demo.py as `make serve-demo` does: Spark, the stream, the service and the page.
Screenshots go to the folder in SPARKML_SGDALS_SCREENSHOTS, where it is set.
"""

from __future__ import annotations

import itertools
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(280)]
pytest.importorskip("fastapi")
sync_api = pytest.importorskip("playwright.sync_api")

ROOT = Path(__file__).resolve().parents[2]
# Chromium of a system package; a closed network must not hold it up
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
TRIGGER = 1.0


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    command = [
        sys.executable, str(ROOT / "examples" / "serve_demo.py"), "--port", "0", "--pace", "20",
        "--trigger", f"{TRIGGER:g} second", "--out", str(out / "out"), "--seconds", "600",
    ]  # fmt: skip
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    lines: queue.Queue[str] = queue.Queue()
    said: list[str] = []

    def read():
        for line in running.stdout:
            said.append(line)
            lines.put(line)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        found, until = None, time.monotonic() + 180
        while found is None and time.monotonic() < until and running.poll() is None:
            try:
                found = re.match(r"Open (http://\S+)", lines.get(timeout=1))
            except queue.Empty:
                continue
        assert found, "".join(said)
        yield found.group(1)
    finally:
        running.send_signal(signal.SIGINT)
        ended = running.wait(60)
    reader.join(10)
    assert ended == 0, "".join(said)
    assert "Traceback" not in "".join(said)


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(params=["light", "dark"])
def page(request, browser, address):
    context = browser.new_context(
        color_scheme=request.param, viewport={"width": 1280, "height": 1100},
        reduced_motion="reduce",
    )  # fmt: skip
    opened = context.new_page()
    faults = []
    opened.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
    opened.on("pageerror", lambda e: faults.append(str(e)))
    opened.on("request", lambda r: None if r.url.startswith(address) else faults.append(r.url))
    opened.goto(address)
    opened.wait_for_selector("#list li")
    yield opened
    context.close()
    assert not faults


def wait(page, script, seconds=15.0):
    """Until a script says so. The page's policy forbids what Playwright's own waiting does."""
    until = time.monotonic() + seconds
    while not page.evaluate(script):
        assert time.monotonic() < until, script
        page.wait_for_timeout(50)


def picture(page, name):
    folder = os.environ.get("SPARKML_SGDALS_SCREENSHOTS")
    if folder:
        scheme = (
            "dark"
            if page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
            else "light"
        )
        page.screenshot(path=f"{folder}/{name}-{scheme}.png", full_page=True)


def titles(page):
    return page.eval_on_selector_all(
        "#list li .name", "ns => ns.map(n => n.firstChild.textContent)"
    )


def test_a_newcomer_rates_three_films(page):
    assert page.get_attribute("#list", "data-cold") == "true"
    picture(page, "before")
    before = titles(page)
    assert len(before) == 10
    rated = []
    for n in range(3):
        row = page.locator("#found li").nth(n)
        name = row.locator(".name").inner_text()
        version = int(page.inner_text("#m-version").replace(",", ""))
        row.get_by_role("button", name=f"5 stars for {name}", exact=True).click()
        rated.append(name)
        page.wait_for_selector("text=/Saved: 5 stars/", timeout=5_000)
        # said by the page when a version has learned it
        said = page.wait_for_selector("#news.good", timeout=20_000).inner_text()
        seconds = float(re.search(r"([\d.]+) seconds after you rated", said).group(1))
        print(f"learned and shown {seconds} s after the click")
        assert seconds < 20, said
        # one that was committed unseen, a batch that was under way, and the next one has it
        assert 1 <= int(page.get_attribute("#list", "data-version")) - version <= 3
    after = titles(page)
    assert after != before
    assert not set(rated) & set(after), "what was rated is recommended still"
    assert page.get_attribute("#list", "data-cold") == "false"
    reasons = page.eval_on_selector_all("#list .why", "ns => ns.map(n => n.textContent)")
    assert any(name in reason for name in rated for reason in reasons), reasons
    assert [page.locator("#mine li .name").nth(n).inner_text() for n in range(3)] == rated[::-1]
    page.locator("#list summary").first.click()
    page.wait_for_selector("#list details table tr")
    picture(page, "after")
    # it is remembered
    page.reload()
    page.wait_for_selector("#list li")
    page.wait_for_selector("#mine li .stars")
    assert page.locator("#mine li").count() == 3


def test_by_keyboard(page):
    page.focus("#query")
    page.keyboard.type("story")
    wait(page, "document.querySelector('#h-found').textContent.includes('story')")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith(
        "1 star for"
    )
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label.startswith("4 stars for")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=/Saved: 4 stars/", timeout=5_000)
    # the focus stays where it was
    wait(page, "document.activeElement.getAttribute('aria-pressed') === 'true'")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == label
    page.wait_for_selector("#news.good", timeout=20_000)


def test_what_a_screen_reader_is_told(page):
    """Every control has a name, headings come in order, and news are announced."""
    page.wait_for_selector("#found li .stars")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, a, summary')].filter(n =>
             !(n.getAttribute('aria-label') || n.textContent.trim() ||
               (n.labels && n.labels.length))).length"""
    )
    assert nameless == 0
    levels = page.eval_on_selector_all("h1, h2, h3", "ns => ns.map(n => +n.tagName[1])")
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert page.get_attribute("#news", "aria-live") == "polite"
    assert page.get_attribute("html", "lang") == "en"


def test_the_panel_is_live(page):
    first = int(page.inner_text("#m-version").replace(",", ""))
    wait(page, f"+document.querySelector('#m-version').textContent.replace(',', '') > {first + 1}")
    page.wait_for_selector("#chart path", state="attached")
    wait(page, "+document.querySelector('#m-rate').textContent > 1")
    assert "RMSE on held-out ratings" in page.inner_text("#chart-text")
    picture(page, "panel")


def test_on_a_small_screen(page):
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    picture(page, "small")
