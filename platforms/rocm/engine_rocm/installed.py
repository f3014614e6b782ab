"""Which GPUs and which torch are here, told from files alone."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from engine.platform import Availability
from engine_triton.installed import counted, torch_build, visible

INDEX = "https://download.pytorch.org/whl/rocm6.4"
INSTALL = f"pip install --force-reinstall torch --index-url {INDEX}"
#: Each leaves out some of the devices that the one before left.
VARIABLES = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")


@dataclass(frozen=True, slots=True)
class Gpu:
    architecture: str  # "gfx942"
    uuid: str  # as ROCR_VISIBLE_DEVICES takes it, "" where the kernel has none


def probe(
    root: Path = Path("/"),
    environment: Mapping[str, str] = os.environ,
    folders: Sequence[str] | None = None,
) -> Availability:
    """`root` stands for /, and `folders` for `sys.path`, in tests."""
    if why := _without_torch(folders):
        return Availability(0, why)
    if why := _without_driver(root):
        return Availability(0, why)
    found = gpus(root)
    if not found:
        return Availability(
            0,
            "there is the driver amdgpu, but no GPU of it that computes and has its /dev/dri/ file",
        )
    chosen = _visible(found, environment)
    if not chosen:
        named = ", ".join(f"{one}={environment[one]!r}" for one in VARIABLES if one in environment)
        return Availability(
            0, f"{named} leaves none of {len(found)} GPUs; unset it, or name some of them"
        )
    torch = torch_build(folders) or {}
    names = counted([f"AMD GPU {one.architecture}" for one in chosen])
    return Availability(
        len(chosen), f"{names}; torch {torch['__version__']} for ROCm {torch['hip']}"
    )


def models(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> list[str]:
    """Architectures of the GPUs that this process may use."""
    return [one.architecture for one in _visible(gpus(root), environment)]


def gpus(root: Path = Path("/")) -> list[Gpu]:
    """In the driver's order. A container sees all nodes, and has the device files of its own."""
    folder = root / "sys/class/kfd/kfd/topology/nodes"
    nodes = [path for path in folder.glob("*") if path.name.isdecimal()]
    found = []
    for node in sorted(nodes, key=lambda path: int(path.name)):
        facts = _facts(node / "properties")
        minor = facts.get("drm_render_minor", 0)
        if facts.get("simd_count", 0) and (root / f"dev/dri/renderD{minor}").exists():
            number = facts.get("unique_id", 0)
            version = facts.get("gfx_target_version", 0)
            found.append(Gpu(architecture(version), f"GPU-{number:016x}" if number else ""))
    return found


def architecture(version: int) -> str:
    """The kernel's number of it: 90402 is 9.4.2, which is gfx942; 90010 is 9.0.10, gfx90a."""
    major, rest = divmod(version, 10000)
    minor, stepping = divmod(rest, 100)
    return f"gfx{major}{minor:x}{stepping:x}"


def _visible(found: Sequence[Gpu], environment: Mapping[str, str]) -> list[Gpu]:
    """The runtime knows GPUs by index or number, what is above it by the index that is left. The
    third variable is another name of the second, which goes first."""
    left = list(found)
    hip = "HIP_VISIBLE_DEVICES" if "HIP_VISIBLE_DEVICES" in environment else VARIABLES[2]
    for variable in (VARIABLES[0], hip):
        identities = [(one.uuid,) if one.uuid else () for one in left]
        left = [left[place] for place in visible(environment.get(variable), identities)]
    return left


def _without_torch(folders: Sequence[str] | None) -> str | None:
    """Why torch cannot drive such a GPU, and what brings one that can."""
    torch = torch_build(folders)
    if torch is None:
        return f"torch is not installed; {INSTALL}"
    version = torch["__version__"]
    if not torch.get("hip"):
        built = f"for CUDA {torch['cuda']}, not for" if torch.get("cuda") else "without"
        return f"torch {version} is built {built} ROCm; {INSTALL}"
    if folders is None and find_spec("triton") is None:
        return f"triton is not installed, which comes with torch for ROCm; {INSTALL}"
    return None


def _without_driver(root: Path) -> str | None:
    device = root / "dev/kfd"
    if not device.exists():
        return (
            "/dev/kfd does not exist: load the driver amdgpu, or start the container with"
            " --device /dev/kfd --device /dev/dri"
        )
    if not os.access(device, os.R_OK | os.W_OK):
        return (
            "this user may not open /dev/kfd; add it to the groups render and video"
            " (usermod -aG render,video USER), or the container with --group-add"
        )
    return None


def _facts(path: Path) -> dict[str, int]:
    """ "simd_count 304" lines."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(" ") for line in lines)
    return {name: int(value) for name, _, value in pairs if value.strip().isdecimal()}
