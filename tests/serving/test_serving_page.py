"""The page in a real browser on services without Spark: away and back, strange titles, events."""

from __future__ import annotations

import csv
import os
import re
import socket
from pathlib import Path

import pytest
from building import settings_of
from page_pictures import chromium, settle

from sparkml_sgdals.serving.http import routes
from sparkml_sgdals.serving.model.titles import spoken

PAGE = Path(routes.__file__).with_name("page")
SCRIPT = '<img src=x onerror="document.title=1"><script>document.title=2</script>'


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("playwright.sync_api")
    try:
        with chromium() as opened:
            yield opened
    except FileNotFoundError as missing:
        pytest.skip(str(missing))


def titles_file(made, path, first):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["itemId", "title", "genres"])
        for n in range(made.items):
            title = first if n == 0 else f"Film, The Nr. {n} ({1950 + n})"
            writer.writerow([made.key(1, n), title, f"Drama|{first if n == 0 else 'War'}"])
    return str(path)


def opened(browser, address):
    page = browser.new_page(reduced_motion="reduce", viewport={"width": 1280, "height": 900})
    page.goto(address)
    page.wait_for_selector("#list .card")
    page.wait_for_selector("#found li .name")
    return page


@pytest.mark.browser
@pytest.mark.timeout(120)
def test_titles_are_text_and_ids_of_a_wrong_kind_are_said_at_once(
    browser, modeler, started, tmp_path
):
    made = modeler()
    titles = titles_file(made, tmp_path / "titles.csv", SCRIPT)
    _, address = started(made, tmp_path / "inbox", "--titles", titles)
    page = opened(browser, f"{address}?user=abc")
    # what the address asked for cannot be: said, and a guest instead
    assert "“abc” is none" in page.inner_text("#news")
    assert page.inner_text("#whose") == "Guest"
    page.fill("#query", "img")
    settle(page, "document.querySelector('#found b')?.textContent.includes('<img')")
    assert page.locator("#found img, #found script, #list img").count() == 0
    page.locator("#found .stars button").nth(4).click()
    page.wait_for_selector("text=/Saved: 5 stars/")
    assert page.inner_text("#mine .name b") == SCRIPT
    assert page.title().startswith("Eddy")
    page.locator("#who summary").click()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    for wrong, said in (("seven", "“seven” is none"), ("1.5", "“1.5” is none"),
                        ("9" * 19, "up to 9,223,372,036,854,775,807")):  # fmt: skip
        page.fill("#user", wrong)
        assert said in page.inner_text("#fault")
        page.keyboard.press("Enter")
    assert not [one for one in asked if "recommendations" in one]
    user = made.key(0, 7)
    page.fill("#user", str(user))
    assert page.inner_text("#fault") == ""
    page.keyboard.press("Enter")
    settle(page, f"document.querySelector('#whose').textContent === 'User {user}'")
    page.close()


@pytest.mark.browser
@pytest.mark.timeout(120)
def test_the_service_goes_away_and_comes_back(browser, modeler, started, tmp_path):
    made = modeler()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    process, address = started(made, tmp_path / "inbox", "--port", port)
    page = opened(browser, address)
    settle(page, "document.querySelector('#pill').textContent === 'Live'")
    process.kill()
    process.wait()
    page.wait_for_selector("#pill[data-state=away]")
    assert "does not answer" in page.inner_text("#news")
    # nothing is rated that is not taken
    page.locator("#found .stars button").nth(2).click()
    settle(page, "document.querySelector('#news').textContent.includes('was not taken')")
    assert page.locator("#found .on").count() == 0
    made.learn(made.ratings(30))
    started(made, tmp_path / "inbox", "--port", port)
    page.wait_for_selector("#pill[data-state=live]", timeout=30_000)
    settle(page, "document.querySelector('#list').dataset.version === '1'")
    page.locator("#found .stars button").nth(2).click()
    page.wait_for_selector("text=/Saved: 3 stars/")
    page.close()


@pytest.mark.browser
@pytest.mark.timeout(120)
def test_events_are_done_and_not_rated(browser, modeler, started, tmp_path):
    made = modeler(settings=settings_of(rank=4, learns_events=True, num_negatives=5))
    titles = titles_file(made, tmp_path / "titles.csv", "Film, A (1999)")
    _, address = started(made, tmp_path / "inbox", "--titles", titles)
    page = opened(browser, address)
    assert page.locator("#star").count() == 1
    assert page.locator(".stars use[href='#star']").count() == 0
    first = page.locator("#found li").first
    assert first.locator("button").inner_text() == "I did this"
    first.locator("button").click()
    page.wait_for_selector("text=/Saved: Done/")
    assert first.locator("button").inner_text() == "Done"
    assert first.locator("button").get_attribute("aria-pressed") == "true"
    assert "likely" in page.locator("#list .guess").first.get_attribute("aria-label")
    assert "stars" not in page.inner_text("main").lower()
    assert "rating" not in page.inner_text("main").lower()
    page.close()


@pytest.mark.browser
@pytest.mark.timeout(120)
def test_page_and_sentences_call_a_film_alike(
    browser, modeler, started, tmp_path, movielens_titles
):
    made = modeler()
    _, address = started(made, tmp_path / "inbox")
    page = opened(browser, address)
    told = page.evaluate(
        "async (all) => { const m = await import('/page/titles.js'); return all.map(m.told) }",
        movielens_titles,
    )
    assert [one["name"] for one in told] == [spoken(title) for title in movielens_titles]
    ticks = page.evaluate(
        "async () => { const m = await import('/page/chart.js'); return [[0.853, 0.921, 5],"
        "[40300, 52340, 6], [0, 7, 3]].map((a) => m.ticks(...a)) }"
    )
    assert ticks == [[0.86, 0.88, 0.9, 0.92], [42000 + 2000 * n for n in range(6)], [0, 2, 4, 6]]
    page.close()


@pytest.fixture
def movielens_titles():
    titles = ["Matrix, The (1999)", "Misérables, Les (1998)", "(2012)", "A, B, An (a (b) c) (1999)"]
    films = Path(os.environ.get("SPARKML_SGDALS_DATA", "."), "ml-latest-small", "movies.csv")
    if films.is_file():
        with films.open(newline="", encoding="utf-8") as file:
            titles += [row["title"] for row in csv.DictReader(file)]
    return titles


def luminance(colour):
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_everything_can_be_told_from_its_ground():
    """WCAG 2.2: 4.5 for text, 3 for what is drawn, light and dark."""
    style = (PAGE / "page.css").read_text()
    for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]+)", block))
        full = {
            name: c if len(c) == 7 else "#" + "".join(2 * letter for letter in c[1:])
            for name, c in colours.items()
        }
        text = [("ink", g) for g in ("ground", "card", "well", "soft")]
        text += [("faint", g) for g in ("ground", "card", "well")]
        text += [("accent", g) for g in ("ground", "card", "well")]
        text += [("on-accent", "accent"), ("good", "good-ground"), ("warn", "warn-ground"),
                 ("warn", "card")]  # fmt: skip
        low = {(a, b): contrast(full[a], full[b]) for a, b in text}
        assert min(low.values()) >= 4.5, low
        drawn = {(a, "card"): contrast(full[a], full["card"]) for a in ("star", "line", "accent")}
        assert min(drawn.values()) >= 3.0, drawn
    script = (PAGE / "covers.js").read_text()
    covers = re.findall(r'\["(#\w{6})", "(#\w{6})", "(#\w{6})"\]', script)
    assert len(covers) >= 15
    assert all(contrast(ground, letters) >= 4.5 for ground, _, letters in covers)
