"""Alerts reach real receivers: a local HTTP server, a local SMTP server, a program."""

from __future__ import annotations

import base64
import email
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller

from acclimate.errors import ConfigError, DeliveryError
from acclimate.monitoring.alerts import (
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    Alert,
    Command,
    Email,
    Webhook,
    deliver,
    signature,
)

ALERT = Alert(title="acclimate: 1 alerts", lines=["fallback_rate: 40.0%"], details={"verdict": "alerts"})


class Receiver:
    """An HTTP server that answers with the given codes in turn, and 200 after them."""

    def __init__(self, codes: list[int]) -> None:
        self.codes, self.got = codes, []  # type: ignore[var-annotated]
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((dict(self.headers), body))
                self.send_response(receiver.codes.pop(0) if receiver.codes else 200)
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver([])
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_webhook_is_signed_and_the_receiver_can_check_it(receiver: Receiver) -> None:
    Webhook(url=receiver.url, secret="s3cret").send(ALERT)
    headers, body = receiver.got[0]
    assert json.loads(body) == {"title": ALERT.title, "alerts": ALERT.lines, "details": ALERT.details}
    assert headers[SIGNATURE_HEADER] == signature("s3cret", headers[TIMESTAMP_HEADER], body)
    assert headers[SIGNATURE_HEADER] != signature("another", headers[TIMESTAMP_HEADER], body)
    assert signature("s3cret", headers[TIMESTAMP_HEADER], body + b" ") != headers[SIGNATURE_HEADER]


def test_without_a_secret_nothing_is_signed(receiver: Receiver) -> None:
    Webhook(url=receiver.url).send(ALERT)
    assert SIGNATURE_HEADER not in receiver.got[0][0]


def test_a_busy_receiver_is_tried_again(receiver: Receiver) -> None:
    receiver.codes = [503, 429]
    Webhook(url=receiver.url, first_pause_s=0.01).send(ALERT)
    assert len(receiver.got) == 3


def test_a_receiver_that_stays_busy_is_given_up(receiver: Receiver) -> None:
    receiver.codes = [503] * 9
    with pytest.raises(DeliveryError, match=r"webhook 127.0.0.1 did not take the alert: it answered 503"):
        Webhook(url=receiver.url, tries=3, first_pause_s=0.01).send(ALERT)
    assert len(receiver.got) == 3


def test_a_receiver_that_refuses_is_not_asked_again(receiver: Receiver) -> None:
    receiver.codes = [403]
    with pytest.raises(DeliveryError, match="it answered 403"):
        Webhook(url=receiver.url, first_pause_s=0.01).send(ALERT)
    assert len(receiver.got) == 1


def test_a_redirect_is_no_delivery(receiver: Receiver) -> None:
    receiver.codes = [301]
    with pytest.raises(DeliveryError, match="it answered 301"):
        Webhook(url=receiver.url, first_pause_s=0.01).send(ALERT)


def test_one_channel_does_not_keep_an_alert_from_the_others(receiver: Receiver) -> None:
    failures = deliver(ALERT, [Webhook(url="http://127.0.0.1:9/ä", tries=1), Webhook(url=receiver.url)])
    assert len(failures) == 1
    assert len(receiver.got) == 1


def test_a_receiver_that_is_away_is_tried_and_told_of() -> None:
    hook = Webhook(url="http://127.0.0.1:9/hook", tries=2, first_pause_s=0.01)
    failures = deliver(ALERT, [hook])
    assert len(failures) == 1
    assert "refused" in failures[0]


class Mailbox:
    def __init__(self) -> None:
        self.mails: list[Any] = []

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802
        self.mails.append(envelope)
        return "250 OK"


def test_a_mail_arrives_with_title_and_lines() -> None:
    mailbox = Mailbox()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    controller = Controller(mailbox, hostname="127.0.0.1", port=port)
    controller.start()
    try:
        Email(host="127.0.0.1", port=port, sender="a@localhost", recipients=["b@localhost", "c@localhost"]).send(ALERT)
    finally:
        controller.stop()
    (envelope,) = mailbox.mails
    assert envelope.rcpt_tos == ["b@localhost", "c@localhost"]
    mail = email.message_from_bytes(envelope.content)
    assert mail["Subject"] == ALERT.title
    assert "fallback_rate: 40.0%" in mail.get_payload()


def test_a_mail_server_that_is_away_is_told_of() -> None:
    with pytest.raises(DeliveryError, match=r"mail server 127.0.0.1:9 did not take the alert"):
        Email(host="127.0.0.1", port=9, sender="a@localhost", recipients=["b@localhost"]).send(ALERT)


def test_a_program_gets_the_alert(tmp_path: Path) -> None:
    script = tmp_path / "take.py"
    script.write_text("import sys; open(sys.argv[1], 'w').write(sys.stdin.read())")
    Command(arguments=[sys.executable, str(script), str(tmp_path / "got")]).send(ALERT)
    assert json.loads((tmp_path / "got").read_text())["alerts"] == ALERT.lines
    with pytest.raises(DeliveryError, match="ended with 3: no"):
        Command(arguments=[sys.executable, "-c", "import sys; sys.stderr.write('no'); sys.exit(3)"]).send(ALERT)
    with pytest.raises(DeliveryError, match="did not take the alert"):
        Command(arguments=[str(tmp_path / "nothing")]).send(ALERT)


#: Starts a child, tells its number, and waits; the child ignores the polite signal where it is told to.
FAMILY = """
import signal, subprocess, sys, time
code = "import signal, time; "
if sys.argv[2] == "stubborn":
    code += "signal.signal(signal.SIGTERM, signal.SIG_IGN); "
child = subprocess.Popen([sys.executable, "-c", code + "print(1, flush=True); time.sleep(600)"], stdout=subprocess.PIPE)
child.stdout.read(1)
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(600)
"""


def runs(number: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("manner", ["polite", "stubborn"])
def test_a_program_that_takes_too_long_is_ended_with_its_children(tmp_path: Path, manner: str) -> None:
    told = tmp_path / "child"
    # On a busy machine a short limit ends the program before it has begun.
    for timeout_s in (2.0, 10.0, 120.0):
        command = Command(arguments=[sys.executable, "-c", FAMILY, str(told), manner], timeout_s=timeout_s)
        with pytest.raises(DeliveryError, match=f"timed out after {timeout_s:.0f}"):
            command.send(ALERT)
        if told.exists() and told.read_text():
            break
    child = int(told.read_text())
    deadline = time.monotonic() + 240
    while runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(child)


def test_a_program_that_leaves_a_child_in_the_background_is_not_waited_for(tmp_path: Path) -> None:
    began = time.monotonic()
    told = tmp_path / "child"
    Command(arguments=["sh", "-c", 'sleep 600 & echo $! > "$0"', str(told)], timeout_s=500.0).send(ALERT)
    assert time.monotonic() - began < 400
    os.kill(int(told.read_text()), signal.SIGTERM)


def test_user_and_password_of_a_webhook_are_sent_as_a_login(receiver: Receiver) -> None:
    url = receiver.url.replace("http://", "http://ada:p%40ss%2Fword@")
    hook = Webhook(url=url)
    hook.send(ALERT)
    headers, body = receiver.got[0]
    assert headers["Authorization"] == "Basic " + base64.b64encode(b"ada:p@ss/word").decode()
    assert json.loads(body)["title"] == ALERT.title
    assert (hook.name, "word" in repr(hook)) == ("webhook 127.0.0.1", False)
    Webhook(url=receiver.url.replace("http://", "http://ada@")).send(ALERT)
    assert receiver.got[1][0]["Authorization"] == "Basic " + base64.b64encode(b"ada:").decode()
    Webhook(url=receiver.url).send(ALERT)
    assert "Authorization" not in receiver.got[2][0]
    with pytest.raises(ConfigError) as refused:
        Webhook(url="ftp://ada:secret@host/x")
    assert "secret" not in str(refused.value)
    with pytest.raises(ConfigError, match="http or https"):
        Webhook(url="http://host:port/x")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Webhook(url="ftp://host/x"), "http or https"),
        (lambda: Webhook(url="http://[::1/x"), "http or https"),
        (lambda: Email(host="h", sender="a@b", recipients=["no"]), "'no' is not a mail address"),
        (lambda: Email(host="h", sender="a@b\nBcc: x@y", recipients=["c@d"]), "not a mail address"),
        (lambda: Email(host="h", sender="a@b", recipients=[]), "at least one recipient"),
        (lambda: Command(arguments=[]), "is empty"),
    ],
)
def test_what_cannot_work_is_refused_before_there_is_an_alert(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
