"""``acclimate ui``, and a server without its page."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import httpx

from acclimate.serve.settings import ServerSettings
from tests import preloaded

START_S = 240.0


def test_the_command_serves_the_page_without_keys_and_says_where(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = ["ui", "--no-open", "--port", "0", "--db", str(tmp_path / "m.db")]
    with log.open("wb") as file:
        process = preloaded.start(*command, stderr=file, cwd=tmp_path)
    try:
        deadline = time.monotonic() + START_S
        while not (found := re.search(r"the page is at (http://127\.0\.0\.1:\d+)/ ", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        page = httpx.get(f"{found[1]}/", timeout=240)
        assert page.status_code == 200
        assert "acclimate" in page.text
        assert httpx.get(f"{found[1]}/login", timeout=240).headers["location"] == "/"
        # A name that points to this machine is not believed: another site could use it to read answers.
        assert httpx.get(f"{found[1]}/", headers={"host": "example.com"}, timeout=240).status_code == 421
        assert not list(tmp_path.glob(".nicegui"))
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(START_S) == 0


def test_the_page_is_on_where_it_is_installed_and_can_be_left_out() -> None:
    assert ServerSettings().page
    assert not ServerSettings(page=False).page
