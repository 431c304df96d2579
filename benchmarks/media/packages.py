"""Data that Debian's packages carry: fetched with apt, unpacked, never installed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

#: Package and what is used of it. Licences are in each package's copyright file; nothing of them is shipped here.
PACKAGES: Final = {
    "hydrogen-drumkits": "drum sounds, recorded or synthesised by many authors",
    "asterisk-core-sounds-en-wav": "spoken prompts of a telephone system, US English, one speaker",
    "asterisk-core-sounds-es-wav": "the same in Mexican Spanish",
    "asterisk-core-sounds-fr-wav": "the same in Canadian French",
    "asterisk-core-sounds-it-wav": "the same in Italian",
    "asterisk-core-sounds-ru-wav": "the same in Russian",
    "klettres-data": "names of letters, spoken in twenty languages by one speaker each",
    "sonic-pi-samples": "short sounds of instruments and machines",
    "tuxpaint-stamps-default": "pictures of things, photographed or drawn, sorted into folders by what they show",
}


def cache() -> Path:
    """Return the folder for what is fetched: ``ACCLIMATE_BENCHMARK_CACHE``, or one below the user's cache folder."""
    given = os.environ.get("ACCLIMATE_BENCHMARK_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "acclimate-benchmarks"


def unpacked(package: str) -> Path:
    """Return the folder with the files of a package."""
    folder = cache() / package
    if folder.exists():
        return folder
    part = folder.with_suffix(".part")
    part.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", "-q", package], cwd=part, check=True)
    (archive,) = part.glob(f"{package}_*.deb")
    subprocess.run(["dpkg-deb", "-x", str(archive), str(part)], check=True)
    archive.unlink()
    part.rename(folder)
    return folder
