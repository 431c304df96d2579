"""Processes that need not load torch: forks of one that has.

A Python that loads torch, transformers and the server needs 4 to 8 CPU seconds before it does anything. Tests that need
a process of its own, for its signals, exit code, streams or locks, fork it from one that has loaded these packages and
has done nothing else. What a fresh Python loads is tested where that matters: ``cli/test_help.py``,
``packaging/test_missing_extras.py``, ``monitoring/test_imports.py``, and the pages that ``test_docs.py`` runs.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).parents[1]
COMMAND = "from acclimate.cli.main import main; main(prog_name='acclimate')"
# What the commands load, whichever it is.
PACKAGES = (
    "torch", "torch._dynamo", "transformers", "transformers.models.auto", "transformers.models.llama.modeling_llama",
    "PIL.Image", "acclimate.cli.main", "acclimate.cli.export", "acclimate.language", "acclimate.vision",
    "acclimate.monitoring", "acclimate.serve.server", "acclimate.ui.site", "alembic.command",
)  # fmt: skip
_LONGEST_MESSAGE = 1 << 20


class Process:
    """What a fork is doing, as :class:`subprocess.Popen` tells it."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._connection = connection

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._told(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once it has ended."""
        code = self._told(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return code

    def send_signal(self, kind: int) -> None:
        """Send a signal to it, if it still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, kind)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def _told(self, timeout_s: float | None) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], timeout_s)[0]:
            told = self._connection.recv(64)
            # Nothing is told where the process that forks was itself killed.
            self.returncode = int(told) if told else -signal.SIGKILL
            self._connection.close()
        return self.returncode


def start(
    *arguments: str,
    code: str = COMMAND,
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int | IO[Any] | None = subprocess.DEVNULL,
    stdout: int | IO[Any] | None = subprocess.DEVNULL,
    stderr: int | IO[Any] | None = subprocess.DEVNULL,
    packages: tuple[str, ...] = PACKAGES,
) -> Process:
    """Run ``acclimate`` with these arguments, or other code, in a fork.

    Args:
        arguments: what follows the name of the program.
        code: what runs; Python.
        cwd: folder that it runs in; also where it looks for modules first, as ``python -m`` does.
        env: its whole environment; this process's by default. PYTHONPATH is obeyed.
        stdin: file that it reads from; None closes it.
        stdout: file that it writes to; None closes it.
        stderr: file that it writes messages to; None closes it.
        packages: what is loaded before.
    """
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    nothing = os.open(os.devnull, os.O_RDWR)
    streams = {
        target: nothing if one == subprocess.DEVNULL else one if isinstance(one, int) else one.fileno()
        for target, one in enumerate((stdin, stdout, stderr))
        if one is not None
    }
    request = {
        "arguments": arguments, "code": code, "cwd": str(cwd or Path.cwd()),
        "env": dict(os.environ if env is None else env), "streams": list(streams),
    }  # fmt: skip
    socket.send_fds(_forking(packages), [json.dumps(request).encode()], [its.fileno(), *streams.values()])
    its.close()
    os.close(nothing)
    return Process(int(mine.recv(64)), mine)


def run(*arguments: str, timeout_s: float = 600.0, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run ``acclimate`` in a fork to its end and return what it wrote; see :func:`start`."""
    streams = [os.memfd_create(name) for name in ("stdout", "stderr")]
    try:
        process = start(*arguments, **{"stdout": streams[0], "stderr": streams[1], **how})
        try:
            code = process.wait(timeout_s)
        finally:
            process.kill()
        told = [os.pread(stream, os.fstat(stream).st_size, 0).decode() for stream in streams]
    finally:
        for stream in streams:
            os.close(stream)
    return subprocess.CompletedProcess(["acclimate", *arguments], code, *told)


@functools.cache
def _forking(packages: tuple[str, ...]) -> socket.socket:
    """Return the connection to a process that has loaded the packages and forks; it ends with this one."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.preloaded", str(its.fileno()), *packages],
        pass_fds=[its.fileno()],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    its.close()

    def end() -> None:
        mine.close()
        process.wait()

    atexit.register(end)
    return mine


def _until_forked(control: socket.socket) -> str:
    """Fork for every request and tell how the forks ended; return in the forks alone, with the code that they run."""
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        ready, _, _ = select.select([control, *running], [], [])
        for ended in [one for one in ready if one in running]:
            pid, connection = running.pop(ended)
            os.close(ended)
            with contextlib.suppress(BrokenPipeError), connection:
                connection.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
        if control not in ready:
            continue
        message, fds, _, _ = socket.recv_fds(control, _LONGEST_MESSAGE, 4)
        if not message:
            for pid, _ in running.values():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            sys.exit()
        connection = socket.socket(fileno=fds[0])
        pid = os.fork()
        if pid == 0:
            connection.close()
            control.close()
            for pidfd, (_, other) in running.items():
                os.close(pidfd)
                other.close()
            return _become(json.loads(message), fds[1:])
        for fd in fds[1:]:
            os.close(fd)
        running[os.pidfd_open(pid)] = pid, connection
        connection.send(str(pid).encode())


def _become(request: dict[str, Any], streams: Sequence[int]) -> str:
    """Take the place of a Python that was started with this request."""
    for target in range(3):
        os.close(target)
    for target, fd in zip(request["streams"], streams, strict=True):
        os.dup2(fd, target)
    for fd in streams:
        os.close(fd)
    # None where a stream is closed, as Python has it.
    given: dict[int, Any] = {target: open(target, "rww"[target], closefd=False) for target in request["streams"]}  # noqa: SIM115
    sys.stdin, sys.stdout, sys.stderr = (given.get(target) for target in range(3))
    if 2 in given:
        given[2].reconfigure(line_buffering=True, errors="backslashreplace")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    paths = [request["cwd"], *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    sys.path[:] = [*filter(None, paths), *(path for path in sys.path if path not in paths)]
    importlib.invalidate_caches()
    sys.argv = ["acclimate", *request["arguments"]]
    code: str = request["code"]
    return code


def _run(code: str) -> NoReturn:
    """Run code as the main module and end, without the half second that Python spends on forgetting its modules."""
    status: object = 0
    try:
        exec(compile(code, "<process of a test>", "exec"), {"__name__": "__main__"})
    except SystemExit as ended:
        status = ended.code or 0
    except BaseException:  # noqa: BLE001 - whatever it is, a process that ends so prints it
        traceback.print_exc()
        status = 1
    if not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    # What Python does when it ends: wait for threads, call what is to be called at exit, write what was printed.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.flush()
    os._exit(status)


def _main() -> str:
    # Ended by its connection, and not by what is typed at a terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for package in sys.argv[2:]:
        importlib.import_module(package)
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"what was loaded has started threads, and a fork would lack them: {threads}"
    gc.freeze()
    return _until_forked(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    _run(_main())
