"""Where compiled programs outlive the process."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.platform import Shape

#: Names the folder in which all programs are kept; unset: the user's cache folder.
FOLDER = "ENGINE_PROGRAM_CACHE"
MANIFEST = "programs.json"


class ProgramCache:
    """A folder for the programs of one model, device and configuration.

    `facts` are all that decides what a program is; others than these give another folder. The
    device's compiler keeps its artefacts in `folder`; `seconds` tells what each program took when
    it was last made, by this process or another.
    """

    def __init__(self, platform: str, *facts: str, root: Path | None = None) -> None:
        self.key = hashlib.sha256("\0".join((platform, *facts)).encode()).hexdigest()[:16]
        self.folder = (root or default_root()) / platform / self.key
        self.folder.mkdir(parents=True, exist_ok=True)
        self.seconds = _read(self.folder / MANIFEST)

    @contextmanager
    def making(self, shape: Shape) -> Iterator[None]:
        """Measure what making a program takes, and remember it."""
        began = time.perf_counter()
        yield
        self.seconds[str(shape)] = round(time.perf_counter() - began, 3)

    def save(self) -> None:
        """Let other processes know. Written beside and moved: readers find all of it or nothing."""
        written = self.folder / f"{MANIFEST}.{os.getpid()}"
        written.write_text(json.dumps(self.seconds, indent=1), encoding="utf-8")
        written.replace(self.folder / MANIFEST)


def default_root() -> Path:
    if named := os.environ.get(FOLDER):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "engine" / "programs"


def _read(manifest: Path) -> dict[str, float]:
    """What it says; nothing where there is none, or none that can be read."""
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
        return {str(name): float(seconds) for name, seconds in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
