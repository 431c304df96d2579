"""Install a wheel into an empty environment, away from the repository, and run what the README shows with it.

python tools/check_wheel.py dist/acclimate-*.whl
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Final

CONSTRAINTS: Final = Path(__file__).parents[1] / "constraints.txt"
WHERE: Final = "import acclimate, pathlib; print(pathlib.Path(acclimate.__file__).resolve())"
PROMPT: Final = "cat -> CAT\ndog -> DOG\nowl -> OWL\nbee ->"


def make_environment(folder: Path, wheel: Path, *, extras: str = "") -> Path:
    """Create a virtual environment with nothing but a wheel and what it requires; return its folder of programs.

    Args:
        folder: of the environment; made here.
        wheel: the wheel.
        extras: names of extras with commas between them, or nothing.
    """
    venv.create(folder, with_pip=True)
    programs = folder / "bin"
    # torch first and alone: a package that asks for a range of it would otherwise choose a build for GPUs.
    for requirement in ("torch", f"{wheel.resolve()}[{extras}]" if extras else str(wheel.resolve())):
        pip = [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*map(str, pip), "-c", str(CONSTRAINTS), requirement], check=True, cwd=folder)  # noqa: S603
    return programs


def outside_environ(folder: Path) -> dict[str, str]:
    """Return environment variables with which neither the repository nor a user's files are found."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ACCLIMATE_"))}
    return {**kept, "ACCLIMATE_DB_URL": str(folder / "metrics.db")}


def main() -> int:
    """Install, run the demo and a question, and return 0 where all of it works."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    wheel: Path = parser.parse_args().wheel
    with tempfile.TemporaryDirectory(prefix="acclimate-wheel-") as made:
        programs = make_environment(Path(made) / "environment", wheel, extras="vision,language")
        scratch = Path(made) / "scratch"
        scratch.mkdir()
        environ = outside_environ(scratch)

        def run(program: str, *arguments: str) -> str:
            print("$", program, *arguments, flush=True)
            command = [str(programs / program), *arguments]
            done = subprocess.run(command, cwd=scratch, env=environ, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
            print(done.stdout, flush=True)
            return done.stdout

        found = run("python", "-c", WHERE).strip()
        if not Path(found).is_relative_to((Path(made) / "environment").resolve()):
            print(f"acclimate was imported from {found}, which is not the wheel's environment", file=sys.stderr)
            return 1
        run("acclimate", "demo", "vision")
        if not run("acclimate", "ask", "--model", "spark", PROMPT).strip():
            print("acclimate ask gave no answer", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
