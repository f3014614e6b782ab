"""Certifies a platform's own code on a CPU: `engine certify` for a stand-in of tests/support.

    python tools/certify_without_device.py cuda_on_cpu --json docs/certificates/cuda_on_cpu.json

Everything after the name is `engine certify`'s. The stand-in is installed in a temporary folder,
for this run and the processes that it starts; programs are kept in another one. What each stands in
for, and what it replaces, is in stand_ins.toml.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SUPPORT = ROOT / "tests" / "support"
STAND_INS = ROOT / "tools" / "stand_ins.toml"

#: The command `engine`, of the engine that this Python finds.
ENGINE = "import sys; from engine.cli import main; sys.exit(main())"


def main(arguments: Sequence[str]) -> int:
    """The exit status of `engine certify`, or 2: there is no such stand-in."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("name", help="a stand-in, with what `--device` allows behind its name")
    known, rest = parser.parse_known_args(arguments)
    offered = read_stand_ins()
    try:
        stand_in = choose(known.name.partition(":")[0], offered)
    except ValueError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder), known.name.partition(":")[0], stand_in["module"])
        command = [sys.executable, "-c", ENGINE, "certify", "--device", known.name, *rest]
        return subprocess.run(command, env=environment(Path(folder), stand_in)).returncode


def read_stand_ins() -> dict[str, dict[str, Any]]:
    """By name; those of tests/support only."""
    found = tomllib.loads(STAND_INS.read_text(encoding="utf-8"))
    return {name: one for name, one in found.items() if "module" in one}


def choose(name: str, offered: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """
    Raises:
        ValueError: there is no such stand-in.
    """
    if name not in offered:
        raise ValueError(
            f"there is no stand-in {name!r}, only {', '.join(offered)};"
            f" an installed platform needs no help: engine certify --device {name}"
        )
    return offered[name]


def install(folder: Path, name: str, module: str) -> None:
    """A distribution of nothing but the entry point that tells the engine of the platform."""
    about = folder / f"{name}-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (about / "entry_points.txt").write_text(f"[engine.platforms]\n{name} = {module}\n")


def environment(folder: Path, stand_in: Mapping[str, Any]) -> dict[str, str]:
    """Of `engine certify` and its children. One thread: what they compute is tiny."""
    path = [str(folder), str(SUPPORT), os.environ.get("PYTHONPATH", "")]
    return {
        "OMP_NUM_THREADS": "1",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "ENGINE_PROGRAM_CACHE": str(folder / "programs"),
        **stand_in.get("environment", {}),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
