"""Take the pictures of the web page that the documentation shows.

    make screenshots

Starts ``acclimate ui`` with the model that ships, uses it as a visitor would, and writes PNG files at the width of a
desk (1280 pixels, light) and of a phone (390 pixels, dark) to ``docs/pictures``. Needs Chromium.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
#: Width, height, theme, and the ready prompt that is asked for the first time in this window, so that it is trained on.
WINDOWS = {"": (1280, 1100, "light", "dates"), "-phone": (390, 844, "dark", "columns")}
START_S = 180.0
TIMEOUT_MS = 180_000.0


def language(page: Page) -> None:
    """Ask one of the ready prompts."""
    page.get_by_role("button", name="Run", exact=True).click()
    page.wait_for_selector("text=It is right with an estimated probability")


def images(page: Page) -> None:
    """Adapt to a stream that is damaged in its middle."""
    page.get_by_role("button", name="Run", exact=True).click()
    page.wait_for_selector("text=95 % interval")


def watch(page: Page) -> None:
    """Wait for the indicators."""
    page.wait_for_selector(".tile")


def operate(page: Page) -> None:
    """Check the health."""
    page.get_by_role("button", name="Check").click()
    page.wait_for_selector("text=ttt_activation_rate")


#: File, path of the page, and what is done before the picture is taken.
VIEWS: tuple[tuple[str, str, Callable[[Page], None]], ...] = (
    ("page-language", "/?example={fresh}", language),
    ("page-images", "/images?damage=contrast&severity=4&method=blend&play=live", images),
    ("page-watch", "/watch?hours=24", watch),
    ("page-operate", "/operate", operate),
)


@contextmanager
def served() -> Iterator[str]:
    """Yield the address of a page that has answered every ready prompt, so that there is something to watch."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "acclimate", "ui", "--no-open", "--port", "0", "--db", f"{folder}/metrics.db"]
        with log.open("wb") as file:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(command, stderr=file, cwd=folder, env=environment)  # noqa: S603 - our own
        try:
            deadline = time.monotonic() + START_S
            while not (found := re.search(r"the page is at (\S+)/ ", log.read_text(errors="replace"))):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(log.read_text(errors="replace"))
                time.sleep(0.2)
            yield found[1]
        finally:
            process.terminate()
            process.wait()


def answer_ready_prompts(page: Page, address: str) -> None:
    """Ask every ready prompt twice, except for those that are asked for the first time in a picture."""
    from acclimate.ui.ready_prompts import READY

    fresh = {name for *_, name in WINDOWS.values()}
    for ready in [ready for ready in READY if ready.name not in fresh] * 2:
        page.goto(f"{address}/?example={ready.name}")
        button = page.get_by_role("button", name="Run", exact=True)
        button.click()
        page.wait_for_function("document.querySelector('.q-btn.action').dataset.finished === '1'")


def main() -> None:
    """Take every picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PICTURES)
    parser.add_argument("--full", action="store_true", help="the whole length of each page, to look it over")
    given = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("Chromium was not found; install it (on Debian: apt-get install chromium)")
    given.out.mkdir(parents=True, exist_ok=True)
    with served() as address, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        first = browser.new_page()
        first.set_default_timeout(TIMEOUT_MS)
        answer_ready_prompts(first, address)
        for suffix, (width, height, scheme, fresh) in WINDOWS.items():
            context = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme="dark" if scheme == "dark" else "light",
                reduced_motion="reduce",
            )
            page = context.new_page()
            page.set_default_timeout(TIMEOUT_MS)
            for name, path, act in VIEWS:
                page.goto(f"{address}{path.format(fresh=fresh)}")
                page.wait_for_selector(".page h1")
                act(page)
                page.mouse.move(0, 0)
                page.wait_for_timeout(1500)
                page.screenshot(path=given.out / f"{name}{suffix}.png", full_page=given.full)
                print(f"{name}{suffix}.png")
            context.close()
        browser.close()


if __name__ == "__main__":
    main()
