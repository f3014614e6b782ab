"""Which GPUs, driver and torch are here, told from files alone."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from engine.platform import Availability
from engine_cuda import flash_installed
from engine_triton.installed import counted, torch_build, visible

INSTALL = "pip install 'engine[cuda]'"
#: PyPI's torch for Linux is built for CUDA.
REINSTALL = "pip install --force-reinstall torch triton"
VISIBLE = "CUDA_VISIBLE_DEVICES"
#: By the first number of the toolkit that torch was built with: the oldest driver that runs it
#: (CUDA toolkit release notes, table of minor version compatibility).
OLDEST_DRIVER = {"11": "450.80", "12": "525.60", "13": "580"}


@dataclass(frozen=True, slots=True)
class Gpu:
    model: str
    uuid: str  # "" where the driver's files are not to be seen, as in some containers


def probe(
    root: Path = Path("/"),
    environment: Mapping[str, str] = os.environ,
    folders: Sequence[str] | None = None,
) -> Availability:
    """`root` stands for /, and `folders` for `sys.path`, in tests."""
    if why := _without_torch(root, folders):
        return Availability(0, why)
    if why := _without_driver(root, folders):
        return Availability(0, why)
    found = gpus(root)
    if not found:
        return Availability(0, "there is an NVIDIA driver, but no GPU: /dev has no nvidia0")
    chosen = visible(environment.get(VISIBLE), [(one.uuid,) if one.uuid else () for one in found])
    if not chosen:
        return Availability(
            0,
            f"{VISIBLE}={environment[VISIBLE]!r} leaves none of {len(found)} GPUs; unset it, or"
            f" name some of 0 to {len(found) - 1}",
        )
    torch = torch_build(folders) or {}
    driver = driver_version(root) or "of an unknown version"
    detail = f"{counted([found[place].model for place in chosen])}; driver {driver}"
    more = flash_installed.note(folders)
    return Availability(len(chosen), f"{detail}, torch {torch['__version__']}; {more}")


def models(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> list[str]:
    """Names of the GPUs that this process may use."""
    found = gpus(root)
    identities = [(one.uuid,) if one.uuid else () for one in found]
    return [found[place].model for place in visible(environment.get(VISIBLE), identities)]


def gpus(root: Path = Path("/")) -> list[Gpu]:
    """By their place on the bus. A container may see the driver's list of all GPUs, and have the
    device files of a few."""
    nodes = {int(path.name.removeprefix("nvidia")) for path in _nodes(root)}
    described = sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    found = []
    for path in described:
        facts = _facts(path)
        minor = facts.get("Device Minor", "")
        if not minor.isdecimal() or int(minor) in nodes:
            found.append(Gpu(facts.get("Model", "NVIDIA GPU"), facts.get("GPU UUID", "")))
    if not described:
        found = [Gpu("NVIDIA GPU", "") for _ in nodes]
    if not found and _is_windows_subsystem(root):
        found = [Gpu("NVIDIA GPU of the Windows host", "")]
    return found


def driver_version(root: Path = Path("/")) -> str | None:
    """ "570.86.15"; None where it cannot be read."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"Kernel Module[^\n]*?\s(\d+(?:\.\d+)+)\s", text)
    return found[1] if found else None


def _without_torch(root: Path, folders: Sequence[str] | None) -> str | None:
    """Why torch cannot drive such a GPU, and what brings one that can."""
    torch = torch_build(folders)
    if torch is None:
        return f"torch is not installed; {INSTALL}"
    version = torch["__version__"]
    if torch.get("hip"):
        return f"torch {version} is built for ROCm {torch['hip']}, not for CUDA; {REINSTALL}"
    if not torch.get("cuda"):
        return f"torch {version} is built without CUDA; {REINSTALL}"
    if folders is None and find_spec("triton") is None:
        return f"triton is not installed; {INSTALL}"
    return None


def _without_driver(root: Path, folders: Sequence[str] | None) -> str | None:
    here = any(_nodes(root)) or (root / "proc/driver/nvidia/version").exists()
    if not here and not _is_windows_subsystem(root):
        return (
            "there is no NVIDIA driver: neither /proc/driver/nvidia nor /dev/nvidia0 exists;"
            " install it, or start the container with --gpus all"
        )
    toolkit = (torch_build(folders) or {}).get("cuda") or ""
    driver = driver_version(root)
    oldest = OLDEST_DRIVER.get(toolkit.partition(".")[0])
    if driver and oldest and _numbers(driver) < _numbers(oldest):
        return (
            f"the NVIDIA driver is {driver}, and torch for CUDA {toolkit} needs {oldest} or newer;"
            " update the driver, or install a torch for an older CUDA"
        )
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _nodes(root: Path) -> list[Path]:
    return sorted((root / "dev").glob("nvidia[0-9]*"))


def _is_windows_subsystem(root: Path) -> bool:
    return (root / "dev/dxg").exists() and (root / "usr/lib/wsl/lib/libcuda.so.1").exists()


def _facts(path: Path) -> dict[str, str]:
    """ "Model:  NVIDIA H200" lines."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}
