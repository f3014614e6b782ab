"""An environment for each peer, made once from the pinned lists in `requirements/`.

A list is complete, so pip installs it without looking at dependencies: what comes is what stands
there, and no package brings an accelerator's libraries along. `torch==2.13.0` is meant to be the
CPU build; where the index's own is another, PIP_EXTRA_INDEX_URL must name torch's for the CPU.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from comparison.processes import PeerError, last_words

REQUIREMENTS = Path(__file__).parent / "requirements"
LLAMA_CPP = "llama-cpp-python==0.3.36"  # its source distribution holds llama.cpp, server and all
LLAMA_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
)


@dataclass(frozen=True)
class Environment:
    """`name` is its list of packages too; `build` adds what no package has, by `recipe`."""

    name: str
    build: Callable[["Made"], None] | None = None
    recipe: str = ""


@dataclass(frozen=True)
class Made:
    folder: Path
    log: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def programs(self) -> Path:
        return self.folder / "bin"

    def run(self, command: Sequence[str | Path]) -> None:
        """With the environment's programs first in PATH.

        Raises:
            PeerError: it failed; the message ends with the last lines of its output.
        """
        path = os.pathsep.join((str(self.programs), os.environ.get("PATH", "")))
        with self.log.open("ab") as log:
            ended = subprocess.run(
                command, stdout=log, stderr=log, env={**os.environ, "PATH": path}, check=False
            )
        if ended.returncode:
            raise PeerError(
                f"{Path(command[0]).name} {command[1]} … ended with status {ended.returncode};"
                f" the end of {self.log}: {last_words(self.log)}"
            )


def make(environment: Environment, cache: Path) -> Made:
    """The environment, from the cache if it was made there before.

    Raises:
        PeerError: a package cannot be installed, or the build fails.
    """
    pinned = REQUIREMENTS / f"{environment.name}.txt"
    recipe = f"{sys.version_info[:2]} {environment.recipe} {pinned.read_text()}"
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:10]
    made = Made(
        cache / "environments" / f"{environment.name}-{digest}",
        cache / "logs" / f"install-{environment.name}.log",
    )
    if (made.folder / "complete").exists():
        return made
    made.log.parent.mkdir(parents=True, exist_ok=True)
    venv.create(made.folder, clear=True)
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", made.python]
    made.run([*pip, "install", "--no-deps", "-r", pinned])
    if environment.build:
        environment.build(made)
    (made.folder / "complete").touch()
    return made


def build_llama_cpp(made: Made) -> None:
    """llama.cpp's server for this processor, out of the source distribution of its bindings."""
    source, build = made.folder / "source", made.folder / "build"
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--no-binary",
        "llama-cpp-python",
    ]
    made.run([*pip, "--dest", source, LLAMA_CPP])
    (archive,) = source.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(source, filter="data")
    (folder,) = source.glob("*/vendor/llama.cpp")
    made.run(["cmake", "-S", folder, "-B", build, "-G", "Ninja", *LLAMA_OPTIONS])
    made.run(["cmake", "--build", build, "--target", "llama-server"])
    shutil.copy(build / "bin" / "llama-server", made.programs)
    shutil.rmtree(source)
    shutil.rmtree(build)


TRANSFORMERS = Environment("transformers")
LLAMA = Environment("llama.cpp", build_llama_cpp, f"{LLAMA_CPP} {LLAMA_OPTIONS}")
OPENVINO = Environment("openvino")
VLLM = Environment("vllm")
