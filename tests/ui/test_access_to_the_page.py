"""Who gets the page, from which site, under which policy; and that the API beside it answers as before."""

from __future__ import annotations

import asyncio
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from acclimate.serve.access import Access, ApiError
from acclimate.serve.keys import KeyFile
from acclimate.serve.schemas import ChatRequest
from acclimate.ui.sessions import IDLE_S, Sessions
from acclimate.ui.snippets import snippets
from tests import preloaded
from tests.ui.conftest import Site

PROMPT = "stone -> <q>stone</q>\nlamp -> <q>lamp</q>\nriver -> <q>river</q>\ncabin -> <q>cabin</q>\nit's ->"


@pytest.fixture
def client(site: Site) -> httpx.Client:
    return httpx.Client(base_url=site.server.url, timeout=120)


def signed_in(client: httpx.Client, key: str) -> httpx.Client:
    form = client.get("/login")
    token = re.search(r'name="token" value="([^"]+)"', form.text)
    assert token is not None
    answer = client.post("/login", data={"key": key, "token": token[1]})
    assert answer.status_code == 303, answer.text
    return client


@pytest.mark.parametrize("path", ["/", "/images", "/watch", "/operate", "/watch/requests/abc"])
def test_nobody_sees_a_page_without_signing_in(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")


def test_the_cookie_is_kept_from_scripts_and_other_sites(client: httpx.Client, site: Site) -> None:
    form = client.get("/login")
    token = re.search(r'name="token" value="([^"]+)"', form.text)
    assert token is not None
    cookies = client.post("/login", data={"key": site.infer, "token": token[1]}).headers.get_list("set-cookie")
    session = next(cookie for cookie in cookies if cookie.startswith("acclimate_session="))
    assert "HttpOnly" in session
    assert "SameSite=strict" in session
    assert site.infer.rsplit("_", 1)[1] not in session


def test_a_form_of_another_site_signs_nobody_in_or_out(client: httpx.Client, site: Site) -> None:
    client.get("/login")
    assert client.post("/login", data={"key": site.infer, "token": "guessed"}).status_code == 403
    assert client.post("/login", data={"key": site.infer}).status_code == 403
    signed_in(client, site.infer)
    client.post("/logout", data={"token": "guessed"}, cookies=client.cookies)
    assert client.get("/", cookies=client.cookies).status_code == 303
    # The cookie was deleted in this browser; the session itself goes on, and only its own form ends it.


def test_a_wrong_key_is_refused_in_words(client: httpx.Client) -> None:
    form = client.get("/login")
    token = re.search(r'name="token" value="([^"]+)"', form.text)
    assert token is not None
    answer = client.post("/login", data={"key": "acclimate_<b>wrong</b>", "token": token[1]})
    assert answer.status_code == 401
    assert "The api key is not valid." in answer.text
    assert "<b>" not in answer.text


def test_scripts_need_the_nonce_of_their_answer(client: httpx.Client, site: Site) -> None:
    signed_in(client, site.infer)
    nonces = set()
    for _ in range(2):
        answer = client.get("/")
        policy = answer.headers["content-security-policy"]
        assert "script-src 'self' 'nonce-" in policy
        assert "frame-ancestors 'none'" in policy
        assert "http" not in policy
        nonce = re.search(r"'nonce-([^']+)'", policy)
        assert nonce is not None
        assert answer.text.count("<script") == answer.text.count(f'<script nonce="{nonce[1]}"')
        nonces.add(nonce[1])
    assert len(nonces) == 2


def test_text_in_an_address_stays_text(client: httpx.Client, site: Site) -> None:
    signed_in(client, site.infer)
    attack = "</script><script>alert(1)</script>`${alert(1)}"
    for path in ("/", "/images", "/watch"):
        answer = client.get(path, params={"model": attack, "key": attack, "example": attack, "status": attack})
        assert "<script>alert" not in answer.text
        assert "nonce" in answer.text
        assert "`${alert" not in answer.text
    answer = client.get(f"/watch/requests/{attack.replace('/', '%2F')}")
    assert "<script>alert" not in answer.text


@pytest.mark.parametrize("path", ["/_nicegui_ws/socket.io/?EIO=4&transport=polling", "/_nicegui/client/abc/upload/1"])
def test_other_sites_and_strangers_reach_nothing_of_a_visitor(client: httpx.Client, site: Site, path: str) -> None:
    assert client.get(path).status_code == 401
    signed_in(client, site.infer)
    assert client.get(path, headers={"origin": "https://example.com"}).status_code == 403
    assert client.get(path, headers={"origin": site.server.url}).status_code in (200, 400, 404, 405)


def test_the_connection_is_refused_to_other_sites_and_strangers(client: httpx.Client, site: Site) -> None:
    upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13",
               "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip
    path = "/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
    assert client.get(path, headers=upgrade).status_code == 403
    signed_in(client, site.infer)
    assert client.get(path, headers=upgrade | {"origin": "https://example.com"}).status_code == 403


def test_the_api_answers_as_it_does_without_a_page(client: httpx.Client, site: Site) -> None:
    key = {"authorization": f"Bearer {site.infer}"}
    assert client.get("/v1/models", headers=key).json()["data"][0]["id"] == "spark"
    unknown = client.get("/v1/unknown", headers=key)
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "invalid_request_error")
    assert client.get("/v1/chat/completions", headers=key).status_code == 405
    assert client.get("/health").status_code == 200
    # A session is of the page alone: programs send their key.
    signed_in(client, site.infer)
    assert client.get("/v1/models").status_code == 401
    assert client.get("/_page/../keys.json").status_code == 404


def test_files_of_the_page_come_from_here_and_are_small_when_they_travel(client: httpx.Client) -> None:
    styles = client.get("/_page/page.css")
    assert styles.headers["content-type"].startswith("text/css")
    assert "http://" not in styles.text.replace("http://www.w3.org", "")
    assert client.get("/_page/unknown.css").status_code == 404


def test_a_session_ends_with_its_key_and_when_it_is_not_used(tmp_path: Path) -> None:
    # In a thread of its own: browser tests leave an event loop in the main one.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: asyncio.run(_sign_in_and_out(tmp_path))).result()


async def _sign_in_and_out(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    now = 0.0
    sessions = Sessions(Access(keys), clock=lambda: now)
    made = [keys.create(name, ["infer"]) for name in ("one", "two")]
    one, two = [await sessions.sign_in(secret) for _, secret in made]
    caller = await sessions.caller(one.token)
    assert caller is not None
    assert caller.name == "one"
    keys.revoke(made[0][0].id)
    assert await sessions.caller(one.token) is None
    with pytest.raises(ApiError, match="your session has ended; sign in again"):
        await sessions.allowed(one.token)
    now = IDLE_S - 1
    # What a page asks for by itself does not keep the session of its visitor.
    assert await sessions.caller(two.token, uses=False) is not None
    assert two.used_at == 0.0
    assert await sessions.caller(two.token) is not None
    now += IDLE_S + 1
    assert await sessions.caller(two.token) is None
    assert await sessions.caller(None) is None
    with pytest.raises(ApiError, match="not valid"):
        await sessions.sign_in("acclimate_000000000000_" + "x" * 43)


def test_what_is_copied_gives_the_same_answer(site: Site, tmp_path: Path) -> None:
    body = ChatRequest.model_validate(
        {"model": "spark", "messages": [{"role": "user", "content": PROMPT}], "ttt": {"mode": "force", "steps": 12}}
    )
    made = snippets(body, server=site.server.url, with_key=True)
    environment = {
        "ACCLIMATE_API_KEY": site.train,
        "PATH": "/usr/bin:/bin",
        "OMP_NUM_THREADS": "1",
        "HOME": str(tmp_path),
    }

    def output(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    curl = output("bash", "-c", made.curl)
    assert '"status":"adapted"' in curl.replace(" ", "")
    python = output(sys.executable, "-c", made.python)
    answer, _, status = python.strip().rpartition(" ")
    assert status == "adapted"
    assert answer.replace('"', '\\"') in curl
    program, *arguments = shlex.split(made.command)
    command = preloaded.run(*arguments, env=environment, cwd=tmp_path)
    assert (program, command.returncode) == ("acclimate", 0), command.stderr
    assert command.stdout.strip() == answer


def test_rows_of_examples_are_copied_with_their_file(tmp_path: Path) -> None:
    body = ChatRequest.model_validate(
        {
            "model": "spark:mine",
            "messages": [{"role": "user", "content": "melon"}],
            "ttt": {"examples": [{"input": "a'b", "output": "c\nd"}, {"input": "e", "output": "f"}], "rank": 4},
            "max_tokens": 7,
        }
    )
    made = snippets(body, server="http://127.0.0.1:1", with_key=False)
    file, _, command = made.command.rpartition("\n")
    subprocess.run(["bash", "-c", file], check=True, cwd=tmp_path)
    assert len((tmp_path / "examples.jsonl").read_text().splitlines()) == 2
    assert shlex.split(command) == [
        "acclimate", "ask", "--model", "spark", "--rank", "4", "--max-answer-tokens", "7", "--examples",
        "examples.jsonl", "--query", "melon",
    ]  # fmt: skip
    compile(made.python, "snippet", "exec")
    assert "extra_body" in made.python
