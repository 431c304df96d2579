"""A server with API keys, and a real browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from acclimate.serve.keys import KeyFile
from tests.serve.process import Server, served

TIMEOUT_MS = 240_000
# The digits network, which the server trains when it is first wanted, was trained by the tests.
TRAINED = """
import shutil
from acclimate.vision.demos import digits
digits.train = lambda checkpoint: shutil.copyfile({path!r}, checkpoint)
"""
expect.set_options(timeout=TIMEOUT_MS)
_SEND = """([label, type, args]) => {
    for (const [id, element] of Object.entries(mounted_app.elements)) {
        const listener = (element.events || []).find(event => event.type === type);
        if (element.props && element.props.label === label && listener) {
            window.socket.emit("event", {
                id: parseInt(id), client_id: window.clientId, listener_id: listener.listener_id, args
            });
            return true;
        }
    }
    return false;
}"""
PHONE, DESKTOP = (390, 844), (1280, 900)


@dataclass(frozen=True)
class Site:
    """A running server and the keys to it: of an administrator, of somebody who may train, and of who may only ask."""

    server: Server
    keys_file: Path
    admin: str
    train: str
    infer: str


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory, digits_checkpoint: Path) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("page")
    images = folder / "images"
    images.mkdir()
    keys_file = folder / "keys.json"
    keys = KeyFile(keys_file)
    made = {scope: keys.create(scope, scopes)[1] for scope, scopes in (
        ("admin", ["admin"]), ("train", ["infer", "train"]), ("infer", ["infer"])
    )}  # fmt: skip
    settings = ("--keys-file", str(keys_file), "--set", f"image_folder={images}")
    with served(folder, *settings, before=TRAINED.format(path=str(digits_checkpoint))) as server:
        yield Site(server, keys_file, **made)
        # Not killed: what the server has in its temporary folder goes with it.
        server.end()


# Ended after the tests of this folder: while it runs, its event loop is that of the main thread.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed: chromium was not found")
    with sync_playwright() as started:
        found = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


class Visitor:
    """A browser window whose complaints are kept.

    Attributes:
        page: the window.
        problems: errors and warnings of its console, and requests to other hosts.
    """

    def __init__(self, context: BrowserContext, address: str) -> None:
        self.page: Page = context.new_page()
        self.page.set_default_timeout(TIMEOUT_MS)
        self.problems: list[str] = []
        self._address = address
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", self._requested)

    def _console(self, message: object) -> None:
        kind, text = message.type, message.text  # type: ignore[attr-defined]
        if kind in ("error", "warning"):
            self.problems.append(text)

    def _requested(self, request: object) -> None:
        url = request.url  # type: ignore[attr-defined]
        if not url.startswith((self._address, "data:", "blob:", self._address.replace("http", "ws"))):
            self.problems.append(f"asked {url}")

    def open(self, path: str) -> Page:
        """Open a page and wait until it is drawn and connected."""
        self.page.goto(f"{self._address}{path}")
        self.page.wait_for_selector(".page h1")
        self.page.wait_for_function("window.did_handshake")
        return self.page

    def sign_in(self, key: str) -> None:
        """Sign in with an API key, without drawing a page."""
        request = self.page.context.request
        token = re.search(r'name="token" value="([^"]+)"', request.get(f"{self._address}/login").text())
        assert token is not None
        answer = request.post(f"{self._address}/login", form={"key": key, "token": token[1]}, max_redirects=0)
        assert answer.status == 303, answer.text()

    def sign_in_by_typing(self, key: str) -> None:
        """Sign in with an API key as somebody does who looks at the page."""
        self.page.goto(f"{self._address}/login")
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.wait_for_selector(".page h1")

    def send(self, label: str, kind: str, *values: object) -> None:
        """Send what a control could send, whether the control would do so or not."""
        sent = self.page.evaluate(_SEND, [label, kind, [json.dumps(value) for value in values]])
        assert sent, f"there is no control {label!r}"

    def run(self) -> None:
        """Press the button that runs something, and wait until it has ended."""
        button = self.page.get_by_role("button", name="Run", exact=True)
        before = button.get_attribute("data-finished")
        button.click()
        self.page.wait_for_function(
            "before => document.querySelector('.q-btn.action').getAttribute('data-finished') !== before", arg=before
        )

    @property
    def overflow_px(self) -> int:
        """How much wider the page is than its window."""
        width: int = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return width
