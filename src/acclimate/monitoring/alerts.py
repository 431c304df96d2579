"""Alerts, and the channels that deliver them: a webhook, an e-mail, a command."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import logging
import os
import signal
import smtplib
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import IO, Any, Final, Protocol
from urllib.parse import unquote, urlsplit

from acclimate.errors import ConfigError, DeliveryError, first_line

_LOG = logging.getLogger(__name__)
SIGNATURE_HEADER: Final = "X-Acclimate-Signature"
TIMESTAMP_HEADER: Final = "X-Acclimate-Timestamp"
_TIMEOUT_S: Final = 10.0
_FIRST_PAUSE_S: Final = 0.5
#: Between asking a program to end and killing it.
_GRACE_S: Final = 2.0
_TRY_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: a redirected POST would arrive as a GET without its body. It fails with its code instead."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER: Final = urllib.request.build_opener(_NoRedirect)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A message that indicators are beyond their bounds.

    Attributes:
        title: a short summary.
        lines: one for each indicator.
        details: plain values for programs.
    """

    title: str
    lines: Sequence[str]
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The alert as the body of an e-mail."""
        return "\n".join((self.title, "", *self.lines, ""))


class Channel(Protocol):
    """Sends alerts to a receiver."""

    @property
    def name(self) -> str:
        """Names the receiver in messages; without passwords or tokens."""

    def send(self, alert: Alert) -> None:
        """Send an alert.

        Raises:
            DeliveryError: the receiver did not accept it.
        """


def deliver(alert: Alert, channels: Sequence[Channel]) -> list[str]:
    """Send an alert through every channel; log and return one line for each that failed."""
    failures = []
    for channel in channels:
        try:
            channel.send(alert)
        except DeliveryError as error:
            failures.append(str(error))
        except Exception as error:  # noqa: BLE001  one channel must not keep an alert from the others
            failures.append(f"{channel.name} did not take the alert: {first_line(error)}")
    for failure in failures:
        _LOG.error("an alert was not delivered: %s", failure)
    return failures


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """Return the signature of a webhook request: the HMAC-SHA256 of ``timestamp.body`` under the shared secret."""
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Posts alerts as JSON; retries with exponentially growing pauses where the receiver is busy or unreachable.

    Attributes:
        url: of the receiver; a user and a password in it are sent by basic authentication.
        secret: shared with the receiver; None sends no signature.
        tries: at most.
        first_pause_s: before the second try; every further pause is twice as long.

    Raises:
        ConfigError: the URL is not http or https.
    """

    url: str = field(repr=False)
    secret: str | None = field(default=None, repr=False)
    tries: int = 4
    first_pause_s: float = _FIRST_PAUSE_S

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            # Reading the port raises an error where it is no number.
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError as error:
            raise ConfigError(f"a webhook needs an http or https address, got {_shown(self.url)!r}: {error}") from error
        if not usable:
            raise ConfigError(f"a webhook needs an http or https address, got {_shown(self.url)!r}")

    @property
    def name(self) -> str:
        """The host of the receiver; the rest of the URL may contain a token."""
        return f"webhook {urlsplit(self.url).hostname}"

    def send(self, alert: Alert) -> None:
        """Post the alert; see :class:`Channel`."""
        body = json.dumps({"title": alert.title, "alerts": list(alert.lines), "details": dict(alert.details)}).encode()
        pause, why = self.first_pause_s, ""
        for number in range(self.tries):
            if number:
                time.sleep(pause)
                pause *= 2
            try:
                self._post(body)
                return
            except urllib.error.HTTPError as error:
                why = f"it answered {error.code}"
                if error.code not in _TRY_AGAIN:
                    break
            except (OSError, http.client.HTTPException) as error:
                why = first_line(error)
        raise DeliveryError(f"{self.name} did not take the alert: {why}")

    def _post(self, body: bytes) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": "acclimate"}
        if self.secret is not None:
            moment = str(int(time.time()))
            headers |= {TIMESTAMP_HEADER: moment, SIGNATURE_HEADER: signature(self.secret, moment, body)}
        # urllib takes a user and a password for a part of the host's name.
        login, address = _split_login(self.url)
        if login is not None:
            headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
        request = urllib.request.Request(address, data=body, headers=headers, method="POST")  # noqa: S310  checked above
        with _OPENER.open(request, timeout=_TIMEOUT_S):
            pass


def _split_login(url: str) -> tuple[str | None, str]:
    """Return ``user:password`` of a URL, decoded, and the URL without it."""
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    if not at:
        return None, url
    user, _, password = login.partition(":")
    return f"{unquote(user)}:{unquote(password)}", parts._replace(netloc=host).geturl()


def _shown(url: str) -> str:
    """Return a URL for a message, without user and password."""
    before, at, after = url.rpartition("@")
    return f"{before.split('//')[0]}//***@{after}" if at and "//" in before else url


@dataclass(frozen=True, slots=True, kw_only=True)
class Email:
    """Sends alerts by SMTP.

    Attributes:
        host, port: of the mail server.
        sender, recipients: addresses.
        user, password: to log in with; None does not log in.
        starttls: encrypt the connection before logging in.
    """

    host: str
    recipients: Sequence[str]
    sender: str
    port: int = 25
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    starttls: bool = False

    def __post_init__(self) -> None:
        for address in (self.sender, *self.recipients):
            if "@" not in address or any(c in address for c in "\r\n"):
                raise ConfigError(f"{address!r} is not a mail address")
        if not self.recipients:
            raise ConfigError("an e-mail needs at least one recipient")

    @property
    def name(self) -> str:
        """The mail server."""
        return f"mail server {self.host}:{self.port}"

    def send(self, alert: Alert) -> None:
        """Send the alert; see :class:`Channel`."""
        message = EmailMessage()
        message["Subject"], message["From"], message["To"] = alert.title, self.sender, ", ".join(self.recipients)
        message.set_content(alert.text)
        try:
            with smtplib.SMTP(self.host, self.port, timeout=_TIMEOUT_S) as server:
                if self.starttls:
                    server.starttls(context=ssl.create_default_context())
                if self.user is not None:
                    server.login(self.user, self.password or "")
                server.send_message(message)
        except (OSError, smtplib.SMTPException) as error:
            raise DeliveryError(f"{self.name} did not take the alert: {first_line(error)}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Runs a program with the alert as JSON on its standard input.

    Attributes:
        arguments: the program and its arguments; no shell is involved.
        timeout_s: after which it is ended, with every program that it has started.
    """

    arguments: Sequence[str]
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if not self.arguments:
            raise ConfigError("the command for alerts is empty")

    @property
    def name(self) -> str:
        """The program."""
        return f"command {self.arguments[0]}"

    def send(self, alert: Alert) -> None:
        """Run the program; see :class:`Channel`."""
        content = json.dumps({"title": alert.title, "alerts": list(alert.lines), "details": dict(alert.details)})
        # Files, not pipes: a program that is left running in the background may keep a pipe open for ever.
        with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile("w+", errors="replace") as said:
            given.write(content)
            given.seek(0)
            try:
                code = _run(self.arguments, given, said, self.timeout_s)
            except (OSError, ValueError, subprocess.TimeoutExpired) as error:
                raise DeliveryError(f"{self.name} did not take the alert: {first_line(error)}") from error
            if code:
                said.seek(0)
                raise DeliveryError(f"{self.name} ended with {code}: {first_line(Exception(said.read(10_000)))}")


def _run(arguments: Sequence[str], given: IO[str], said: IO[str], timeout_s: float) -> int:
    """Run a program to its end and return its exit code; where that takes too long, end its process group.

    Raises:
        OSError: it cannot be started.
        subprocess.TimeoutExpired: it took longer than ``timeout_s``.
    """
    process = subprocess.Popen(  # noqa: S603  the program that the caller named
        list(arguments), stdin=given, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
    )
    try:
        return process.wait(timeout_s)
    except BaseException:
        _end_group(process)
        raise


def _end_group(process: subprocess.Popen[Any]) -> None:
    """Ask every process of the group to end, and kill what is left after a moment."""
    for number, grace_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, 0.0)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
        if number == signal.SIGTERM:
            # The program may have ended and left children of its group behind.
            deadline = time.monotonic() + grace_s
            while _group_exists(process.pid) and time.monotonic() < deadline:
                time.sleep(0.02)
    process.wait()


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # Some of it runs as another user.
        return True
    return True
