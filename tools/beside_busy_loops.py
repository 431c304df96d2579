"""Run a command beside busy loops that want the processors too, and end them whatever happens.

    python tools/beside_busy_loops.py 4 make test

Shows that tests do not depend on how long things take. Returns the command's exit code.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

# A loop also ends by itself once its parent is gone, for instance because it was killed.
LOOP: Final = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"


def main(loops: int, command: list[str]) -> int:
    """Run ``command`` beside ``loops`` busy loops; return its exit code."""
    busy: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(loops):
            busy.append(subprocess.Popen([sys.executable, "-c", LOOP, str(os.getpid())]))  # noqa: S603
        return subprocess.run(command, check=False).returncode  # noqa: S603
    finally:
        for process in busy:
            process.kill()
        for process in busy:
            process.wait()


if __name__ == "__main__":
    if len(sys.argv) < 3 or not sys.argv[1].isdigit():
        sys.exit(__doc__)
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
