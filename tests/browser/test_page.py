"""A newcomer in a real browser rates three films and sees the list move, beside a real stream.

Runs examples/serve_demo.py as `make serve-demo` does: Spark, the stream, the service and the page.
Screenshots go to the folder in SPARKML_SGDALS_SCREENSHOTS, where it is set.
"""

from __future__ import annotations

import itertools
import os
import re

import pytest
from page_pictures import Demo, chromium, settle

pytestmark = [pytest.mark.browser, pytest.mark.timeout(280)]
pytest.importorskip("fastapi")
pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    demo = Demo(out / "out", "--pace", "20", "--trigger", "1 second", "--seconds", "600")
    try:
        demo.wait()
        yield demo
    finally:
        ended = demo.end()
    assert ended == 0, "".join(demo.said)
    assert "Traceback" not in "".join(demo.said)


@pytest.fixture(scope="module")
def browser():
    try:
        with chromium() as opened:
            yield opened
    except FileNotFoundError as missing:
        pytest.skip(str(missing))


@pytest.fixture(params=["light", "dark"])
def page(request, browser, demo):
    context = browser.new_context(
        color_scheme=request.param, viewport={"width": 1280, "height": 1100},
        reduced_motion="reduce",
    )  # fmt: skip
    opened = context.new_page()
    faults = []
    opened.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
    opened.on("pageerror", lambda e: faults.append(str(e)))
    opened.on("request", lambda r: None if r.url.startswith(demo.address) else faults.append(r.url))
    opened.goto(demo.address)
    opened.wait_for_selector("#list .card")
    opened.wait_for_selector("#found .stars")
    yield opened
    context.close()
    assert not faults


def picture(page, name):
    folder = os.environ.get("SPARKML_SGDALS_SCREENSHOTS")
    if folder:
        dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
        scheme = "dark" if dark else "light"
        page.screenshot(path=f"{folder}/{name}-{scheme}.png", full_page=True)


def texts(page, selector):
    return page.eval_on_selector_all(selector, "ns => ns.map(n => n.textContent)")


def version(page):
    return int(page.inner_text("#m-version").replace(",", ""))


def test_a_newcomer_rates_three_films(page):
    assert page.get_attribute("#list", "data-cold") == "true"
    assert page.inner_text("#whose") == "Guest"
    assert page.inner_text("#pill") == "Live"
    picture(page, "before")
    before = texts(page, "#list .name b")
    assert len(before) == 10
    rated = []
    for n in range(3):
        row = page.locator("#found li").nth(n)
        name = row.locator(".name b").inner_text()
        first = version(page)
        button = row.get_by_role("button", name=f"5 stars for {name}", exact=True)
        # what is pointed at does not look like what is rated
        button.hover()
        assert row.locator(".stars .near").count() == 5
        assert row.locator(".stars .on").count() == 0
        full = "n => getComputedStyle(n.querySelector('.full')).clipPath"
        assert button.evaluate(full) == "inset(0px 100% 0px 0px)"
        button.click()
        rated.append(name)
        page.wait_for_selector("text=/Saved: 5 stars/", timeout=5_000)
        assert row.locator(".stars .on").count() == 5
        # said by the page when a version has learned it
        said = page.wait_for_selector("#news.good", timeout=20_000).inner_text()
        seconds = float(re.search(r"in ([\d.]+) seconds", said).group(1))
        print(f"learned and shown {seconds} s after the click")
        assert seconds < 20, said
        # one that was committed unseen, a batch that was under way, and the next one has it
        assert 1 <= int(page.get_attribute("#list", "data-version")) - first <= 3
    after = texts(page, "#list .name b")
    assert after != before
    assert not set(rated) & set(after), "what was rated is recommended still"
    assert page.get_attribute("#list", "data-cold") == "false"
    assert page.inner_text("#h-list") == "For you"
    reasons = texts(page, "#list .why")
    assert all(reasons)
    assert any("people" in reason for reason in reasons)
    assert texts(page, "#mine .name b") == rated[::-1]
    page.locator("#list summary").first.click()
    page.wait_for_selector("#list details .terms div")
    named = texts(page, "#list details[open] .terms dt")
    assert not [name for name in named if "=" in name or name.startswith(("item ", "user "))]
    picture(page, "after")
    page.keyboard.press("Escape")
    assert page.locator("#list details[open]").count() == 0
    # everyone's favourites are what somebody unknown gets, but for what was rated
    page.locator("[value=everyone] + span").click()
    settle(page, "document.querySelector('#h-list').textContent.startsWith('Everyone')")
    everyone = texts(page, "#list .name b")
    assert everyone != after
    assert len(set(everyone) & set(before)) >= 5
    # both are remembered
    page.reload()
    page.wait_for_selector("#mine .stars")
    page.wait_for_selector("#list .card")
    assert page.locator("#mine li").count() == 3
    assert page.is_checked("[value=everyone]")


def test_by_keyboard(page):
    page.focus("#query")
    page.keyboard.type("story")
    settle(page, "document.querySelector('#h-found').textContent.includes('story')")
    page.keyboard.press("Tab")
    focused = "document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(focused).startswith("1 star for")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    label = page.evaluate(focused)
    assert label.startswith("4 stars for")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=/Saved: 4 stars/", timeout=5_000)
    # the focus stays where it was
    settle(page, "document.activeElement.getAttribute('aria-pressed') === 'true'")
    assert page.evaluate(focused) == label
    page.wait_for_selector("#news.good", timeout=20_000)
    # the user's sheet closes by Escape, and gives the focus back
    page.focus("#who summary")
    page.keyboard.press("Enter")
    page.focus("#user")
    page.keyboard.press("Escape")
    assert not page.evaluate("document.querySelector('#who').open")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"


def test_a_new_film_is_placed_by_its_genres(page):
    """Added by title and boxes, it has a place for the user, and its genres say why."""
    form = page.locator("#newcomer-item")
    form.locator("summary").first.click()
    settle(page, "document.querySelectorAll('#newcomer-features input').length > 3")
    page.fill("#newcomer-title", "A film of tomorrow")
    page.locator("#newcomer-features input[type=checkbox][value=Comedy]").check()
    page.locator("#newcomer-form button[type=submit]").click()
    page.wait_for_selector("#newcomer-shown li")
    shown = page.locator("#newcomer-shown li").first
    assert shown.locator(".name").first.inner_text().startswith("A film of tomorrow")
    assert "for you" in shown.locator(".badge").inner_text() or "not among" in shown.inner_text()
    why = shown.locator(".why").first.inner_text()
    assert re.search(r"predicted\. Not rated yet: .*Comedy [+-]\d", why), why
    shown.locator("summary").first.click()
    page.wait_for_selector("#newcomer-shown .terms div")
    assert "Comedy" in " ".join(texts(page, "#newcomer-shown .terms dt"))
    picture(page, "new-film")


def test_what_a_screen_reader_is_told(page):
    """Every control has a name, headings come in order, and news are announced."""
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
    assert page.get_attribute("#pill", "role") == "status"
    assert page.get_attribute("#fault", "role") == "alert"
    assert page.get_attribute("html", "lang") == "en"


def test_the_panel_is_live(page):
    first = version(page)
    settle(
        page, f"+document.querySelector('#m-version').textContent.replace(',', '') > {first + 1}"
    )
    page.wait_for_selector("#chart path", state="attached")
    settle(page, "+document.querySelector('#m-rate').textContent > 1")
    assert "RMSE on held-out ratings" in page.inner_text("#chart-text")
    inside = "ns => ns.every(n => n.getBBox().x >= 0)"
    assert page.eval_on_selector_all("#chart text", inside)
    picture(page, "panel")


def test_on_a_small_screen(page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.reload()
    page.wait_for_selector("#list .card")
    page.wait_for_selector("#found .stars")
    page.locator("#list summary").first.click()
    page.wait_for_selector("#list .terms")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    least = "ns => Math.min(...ns.flatMap(n => [n.offsetWidth, n.offsetHeight]))"
    assert page.eval_on_selector_all(".stars button", least) >= 24
    # terms stand below each other, and the chart is drawn for the width there is
    stacked = "n => getComputedStyle(n).gridTemplateColumns.split(' ').length"
    assert page.locator(".terms > div").first.evaluate(stacked) == 1
    page.wait_for_selector("#chart text", state="attached")
    drawn = "n => n.viewBox.baseVal.width - n.clientWidth"
    settle(page, f"Math.abs(({drawn})(document.querySelector('#chart'))) <= 1")
    picture(page, "small")
