"""Take the pictures of the service's page for README and docs: python scripts/page_pictures.py

Runs examples/serve_demo.py as `make serve-demo` does (Spark, the stream, the service), opens the
page in Chromium, rates three films as a newcomer, and ends the service to see what the page says.
Pictures go to docs/images, or --out.
"""

from __future__ import annotations

import argparse
import io
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Demo", "chromium", "settle"]

ROOT = Path(__file__).resolve().parent.parent
# Chromium of a system package; a closed network must not hold it up
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
LARGEST = 190_000
"""bytes of a picture; what is larger gets a palette, whose steps gradients show"""
WIDE, PHONE = {"width": 1280, "height": 1010}, {"width": 390, "height": 844}
RATED = ("toy story 1995", "finding nemo", "monsters, inc")


class Demo:
    """examples/serve_demo.py in a process of its own.

    Parameters
    ----------
    out : Path
        folder for what it writes
    more : str
        further options of it
    """

    def __init__(self, out: Path, *more: str) -> None:
        command = [sys.executable, str(ROOT / "examples" / "serve_demo.py"), "--port", "0"]
        self._running = subprocess.Popen(
            [*command, "--out", str(out), *more],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.said: list[str] = []
        self.address = ""
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._running.stdout is not None
        for line in self._running.stdout:
            self.said.append(line)
            self._lines.put(line)

    def wait(self, seconds: float = 180.0) -> str:
        """Return the page's address once there is one; RuntimeError where there is none in time."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self._running.poll() is None:
            try:
                found = re.match(r"Open (http://\S+)", self._lines.get(timeout=1))
            except queue.Empty:
                continue
            if found:
                self.address = found.group(1)
                return self.address
        raise RuntimeError("".join(self.said))

    def kill_service(self) -> None:
        """End the service, which the demo starts again."""
        children = Path(f"/proc/{self._running.pid}/task/{self._running.pid}/children")
        for pid in map(int, children.read_text().split()):
            if b"sparkml_sgdals.serving" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)

    def end(self) -> int:
        """End it, and return its exit code."""
        if self._running.poll() is None:
            self._running.send_signal(signal.SIGINT)
        ended = self._running.wait(60)
        self._reader.join(10)
        return ended


@contextmanager
def chromium() -> Iterator[Any]:
    """Chromium of this machine; FileNotFoundError where there is none."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        raise FileNotFoundError("there is no Chromium: apt-get install chromium")
    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


def settle(page: Any, script: str, seconds: float = 15.0) -> None:
    """Wait until a script says so. The page's policy forbids what Playwright's own waiting does."""
    until = time.monotonic() + seconds
    while not page.evaluate(script):
        if time.monotonic() > until:
            raise TimeoutError(script)
        page.wait_for_timeout(50)


def rate(page: Any, query: str, stars: int) -> None:
    """Rate the first film found, and wait until that is learned."""
    page.fill("#query", query)
    settle(page, f"document.querySelector('#h-found').textContent.includes({query!r})")
    page.locator("#found li").first.locator(".stars button").nth(stars - 1).click()
    page.wait_for_selector("text=/^Saved/")
    page.wait_for_selector("#news.good", timeout=30_000)


def save(page: Any, file: Path, *scripts: str) -> None:
    """Save what is seen after each of the scripts, side by side."""
    from PIL import Image

    page.mouse.move(0, 0)
    page.wait_for_timeout(700)
    shots = []
    for script in scripts or ("0",):
        page.evaluate(script)
        page.wait_for_timeout(100)
        shots.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    width, height = shots[0].size
    gap = width // 20
    image = Image.new("RGB", ((width + gap) * len(shots) - gap, height), "#808080")
    for n, shot in enumerate(shots):
        image.paste(shot, (n * (width + gap), 0))
    image.save(file, optimize=True)
    if file.stat().st_size > LARGEST:
        image.quantize(256, kmeans=3, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


def take(demo: Demo, browser: Any, out: Path) -> None:
    """Take all pictures."""
    page = browser.new_page(viewport=WIDE, reduced_motion="reduce")
    page.goto(demo.address)
    page.wait_for_selector("#list .card")
    settle(page, "+document.querySelector('#m-rate').textContent > 1")
    save(page, out / "page-start.png")
    for query in RATED:
        rate(page, query, 5)
    page.fill("#query", "")
    settle(page, "document.querySelector('#h-found').textContent.startsWith('Seen')")
    page.locator("#list summary").nth(1).click()
    page.wait_for_selector("#list .terms")
    save(page, out / "page.png")
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    user = page.evaluate("localStorage.getItem('user')")
    page.set_viewport_size({"width": 1280, "height": 640})
    save(page, out / "page-model.png", "scrollTo(0, document.body.scrollHeight)")
    page.set_viewport_size(WIDE)
    for name, more in (
        ("phone", {"viewport": PHONE, "device_scale_factor": 2, "has_touch": True}),
        ("dark", {"viewport": WIDE, "color_scheme": "dark"}),
    ):
        other = browser.new_page(reduced_motion="reduce", **more)
        other.goto(f"{demo.address}?user={user}")
        other.wait_for_selector("#list .card")
        screens = ("scrollTo(0, 0)", "document.querySelector('.best-of').scrollIntoView()")
        save(other, out / f"page-{name}.png", *(screens if name == "phone" else ()))
    page.evaluate("scrollTo(0, 0)")
    demo.kill_service()
    page.wait_for_selector("#pill[data-state=away]")
    save(page, out / "page-away.png")


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        demo = Demo(Path(folder) / "out", "--pace", "100", "--seconds", "600")
        try:
            demo.wait()
            # so that the curves have something to show
            time.sleep(40)
            with chromium() as browser:
                take(demo, browser, given.out)
        finally:
            demo.end()


if __name__ == "__main__":
    main()
