"""API keys: who may use the server, and for what.

A key is ``acclimate_<id>_<secret>``. The file holds the id, and a hash of the secret that is slow to compute (argon2id,
RFC 9106), so that whoever reads the file cannot use it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import argon2

from acclimate.errors import ConfigError, DataError
from acclimate.json_values import from_json
from acclimate.output_files import write_output

Scope = Literal["infer", "train", "admin"]
SCOPES: Final[tuple[Scope, ...]] = ("infer", "train", "admin")
_SHAPE: Final = re.compile(r"acclimate_([0-9a-f]{12})_([A-Za-z0-9_-]{43})\Z")
#: Compared where an id is unknown, so that this takes as long as a wrong secret.
_NOBODY: Final = argon2.PasswordHasher().hash("nobody")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One key, without its secret.

    Attributes:
        id: public part of the key; requests, adapters and limits are accounted to it.
        name: for people.
        scopes: ``infer`` (ask), ``train`` (adapt to examples, make adapters), ``admin`` (load and see everything).
        created, revoked: ISO 8601 times; None where it is valid.
        hash: of the secret.
    """

    id: str
    name: str
    scopes: tuple[Scope, ...]
    created: str
    revoked: str | None = None
    hash: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        texts = (self.id, self.name, self.created, self.hash, *self.scopes, self.revoked or "")
        if not all(isinstance(text, str) for text in texts) or not (self.id + self.hash).isascii():
            raise TypeError("a key has a field that is no text")

    def may(self, scope: Scope) -> bool:
        """Return whether the key allows ``scope``; ``admin`` allows everything."""
        return scope in self.scopes or "admin" in self.scopes


class KeyFile:
    """The keys in a file; read again when it changes, so that a revoked key is refused at once.

    Args:
        path: JSON; need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._stamp: tuple[int, int] | None = None
        self._keys: dict[str, ApiKey] = {}
        # Digests of keys whose slow hash was checked: a digest in memory gives nobody the key.
        self._checked: dict[str, bytes] = {}
        self._hasher = argon2.PasswordHasher()

    def all(self) -> list[ApiKey]:
        """Return all keys, the oldest first.

        Raises:
            ConfigError: the file cannot be read.
        """
        with self._lock:
            self._read()
            return sorted(self._keys.values(), key=lambda key: key.created)

    def by_id(self, key_id: str) -> ApiKey | None:
        """Return the key with this id, revoked or not, or None.

        Raises:
            ConfigError: the file cannot be read.
        """
        with self._lock:
            self._read()
            return self._keys.get(key_id)

    def create(self, name: str, scopes: Iterable[str]) -> tuple[ApiKey, str]:
        """Add a key; return it and the text that its user sends, which is kept nowhere.

        Raises:
            DataError: a scope is unknown, there is none, or the name is empty.
        """
        chosen = tuple(scope for scope in SCOPES if scope in set(scopes))
        if unknown := set(scopes) - set(SCOPES):
            raise DataError(f"unknown scope {sorted(unknown)[0]!r}; give some of {', '.join(SCOPES)}")
        if not chosen or not name.strip():
            raise DataError("a key needs a name and at least one scope")
        secret = secrets.token_urlsafe(32)
        key = ApiKey(
            id=secrets.token_hex(6), name=name.strip(), scopes=chosen, created=_now(), hash=self._hasher.hash(secret)
        )
        with self._lock:
            self._read()
            self._write({**self._keys, key.id: key})
        return key, f"acclimate_{key.id}_{secret}"

    def revoke(self, key_id: str) -> ApiKey:
        """Refuse a key from now on.

        Raises:
            DataError: there is no such key.
        """
        with self._lock:
            self._read()
            key = self._keys.get(key_id)
            if key is None:
                raise DataError(f"there is no key with the id {key_id!r}; acclimate keys list shows them")
            revoked = replace(key, revoked=key.revoked or _now())
            self._write({**self._keys, key_id: revoked})
            return revoked

    def find(self, sent: str) -> ApiKey | None:
        """Return the key that ``sent`` is, or None; takes as long for an unknown id as for a wrong secret."""
        shape = _SHAPE.match(sent)
        key_id, secret = shape.groups() if shape else ("", sent)
        digest = hashlib.sha256(sent.encode("utf-8", "replace")).digest()
        with self._lock:
            self._read()
            key, known = self._keys.get(key_id), self._checked.get(key_id)
        if key is None or key.revoked is not None:
            self._matches(_NOBODY, secret)
            return None
        if known is not None and hmac.compare_digest(known, digest):
            return key
        if not self._matches(key.hash, secret):
            return None
        with self._lock:
            self._checked[key_id] = digest
        return key

    def _matches(self, kept: str, secret: str) -> bool:
        try:
            return self._hasher.verify(kept, secret)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False

    def _read(self) -> None:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            self._keys, self._stamp = {}, None
            return
        except OSError as error:
            raise ConfigError(f"cannot read the API keys in {self.path}: {error.strerror}") from error
        stamp = (status.st_mtime_ns, status.st_size)
        if stamp == self._stamp:
            return
        try:
            rows: Sequence[dict[str, object]] = from_json(self.path.read_text(encoding="utf-8"))["keys"]
            keys = [ApiKey(**{**row, "scopes": tuple(row["scopes"])}) for row in rows]  # type: ignore[arg-type]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"{self.path} is no file of API keys ({error}); acclimate keys create makes one"
            ) from error
        self._keys = {key.id: key for key in keys}
        self._checked = {}
        self._stamp = stamp

    def _write(self, keys: dict[str, ApiKey]) -> None:
        text = json.dumps({"keys": [asdict(key) for key in keys.values()]}, indent=2) + "\n"
        write_output(self.path, text, private=True)
        self._stamp = None
        self._read()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
