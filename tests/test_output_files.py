"""Result files arrive whole or not at all, links are followed, and what is no regular file is never replaced.

FIFOs and sockets in a scratch folder stand for devices.
"""

from __future__ import annotations

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from acclimate.errors import CheckpointError, DataError
from acclimate.output_files import (
    check_folder_writable,
    check_writable,
    is_special,
    make_folder,
    open_output,
    open_text_output,
    write_output,
)
from tests.full_disk import largest_file


class Reader(threading.Thread):
    """Reads a FIFO, or what one client sends to a socket, until the other side closes it."""

    def __init__(self, path: Path, *, kind: str) -> None:
        super().__init__(daemon=True)
        self.path, self.kind, self.content = path, kind, b""
        if kind == "fifo":
            os.mkfifo(path)
        else:
            # Bound by a short name: addresses of sockets are limited to about a hundred characters.
            self.server = socket.socket(socket.AF_UNIX)
            here = Path.cwd()
            os.chdir(path.parent)
            self.server.bind(path.name)
            os.chdir(here)
            self.server.listen(1)
        self.start()

    def run(self) -> None:
        if self.kind == "fifo":
            self.content = self.path.read_bytes()
            return
        connection, _ = self.server.accept()
        with connection, self.server:
            while part := connection.recv(4096):
                self.content += part

    def received(self) -> bytes:
        self.join(240)
        assert not self.is_alive()
        return self.content


def fail_half_way(path: Path) -> None:
    def fail() -> None:
        with open_output(path) as file:
            file.write(b"half")
            raise RuntimeError

    def fail_with_text() -> None:
        with open_text_output(path) as file:
            file.write("half")
            raise RuntimeError

    for failing in (fail, fail_with_text):
        with pytest.raises(RuntimeError):
            failing()


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_what_is_no_regular_file_is_written_to_and_stays(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pipe"
    reader = Reader(path, kind=kind)
    before = path.lstat()
    assert is_special(path)
    check_writable(path)
    write_output(Path("pipe"), "whole\n")
    assert reader.received() == b"whole\n"
    assert (path.lstat().st_ino, stat.S_IFMT(path.lstat().st_mode)) == (before.st_ino, stat.S_IFMT(before.st_mode))
    assert leftovers(tmp_path) == ["pipe"]


def test_a_block_that_raises_sends_nothing(tmp_path: Path) -> None:
    reader = Reader(tmp_path / "pipe", kind="fifo")
    fail_half_way(tmp_path / "pipe")
    with open_text_output(tmp_path / "pipe") as text:
        text.write("whole\r\n")
    assert reader.received() == b"whole\r\n"


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "target").write_text("old")
    (tmp_path / "real" / "target").chmod(0o640)
    (tmp_path / "middle").symlink_to("real/target")
    (tmp_path / "link").symlink_to("middle")
    (tmp_path / "dangling").symlink_to("real/new")
    for name, target in (("link", "target"), ("dangling", "new")):
        write_output(tmp_path / name, name)
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "real" / target).read_text() == name
        assert not (tmp_path / "real" / target).is_symlink()
    assert stat.S_IMODE((tmp_path / "real" / "target").stat().st_mode) == 0o640
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError, match="cannot write"):
        write_output(tmp_path / "loop", "x")
    with pytest.raises(DataError, match="cannot write"):
        check_writable(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to_pipe").symlink_to("pipe")
    assert is_special(tmp_path / "to_pipe")
    assert not is_special(tmp_path / "nowhere")


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    fail_half_way(path)
    assert leftovers(tmp_path / "deep") == []
    write_output(path, b"first")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    fail_half_way(path)
    assert path.read_bytes() == b"first"
    assert leftovers(tmp_path / "deep") == ["file"]


def test_a_full_disk_is_an_error_that_leaves_the_old_file(tmp_path: Path) -> None:
    write_output(tmp_path / "file", "old")
    with largest_file(100), pytest.raises(DataError, match=r"cannot write .*file: File too large"):
        write_output(tmp_path / "file", "x" * 100_000)
    assert (tmp_path / "file").read_text() == "old"
    assert leftovers(tmp_path) == ["file"]


def test_where_nothing_can_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "below", tmp_path / "file" / "a" / "b", tmp_path / ("x" * 300)):
        with pytest.raises(CheckpointError, match="cannot write"):
            write_output(path, "x", error=CheckpointError)
    for path in (tmp_path, tmp_path / "file" / "below", Path("a\0b")):
        with pytest.raises(DataError, match="cannot write"):
            check_writable(path)
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/"), tmp_path / "/"):
        with pytest.raises(DataError, match="cannot write"):
            check_folder_writable(folder)
        with pytest.raises(DataError, match="cannot write"):
            make_folder(folder)
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
