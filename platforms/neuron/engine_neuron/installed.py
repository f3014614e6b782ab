"""What is installed here, told from files alone: no driver is opened, no torch is imported.

PyPI has packages of these names that only say "WRONG PACKAGE"; the real ones are on the vendor's
own index.
"""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from engine.platform import Availability

INDEX = "https://pip.repos.neuron.amazonaws.com"
#: The version keeps pip from taking a placeholder, which is 1.0.
INSTALL = f"pip install 'torch-neuronx>=2.13' --extra-index-url {INDEX}"
PLACEHOLDER = "WRONG PACKAGE"
PACKAGES = ("torch-neuronx", "neuronx-cc", "nki", "libneuronxla")
PYTHON = (3, 12)
TORCH = (2, 13)  # the first that TorchNeuron's native device goes with
#: So many of a chip's cores the runtime offers as one.
TOGETHER = "NEURON_LOGICAL_NC_CONFIG"


def probe(root: Path = Path("/")) -> Availability:
    """`root` stands for / in tests."""
    return Availability(0, problem) if (problem := missing()) else _devices(root)


def missing() -> str | None:
    """Why the vendor's package cannot be used here, and what brings it; None where it can."""
    if false := [name for name in PACKAGES if _is_placeholder(name)]:
        return (
            f"{', '.join(false)} came from PyPI, where it is a placeholder;"
            f" pip uninstall -y {' '.join(false)} && {INSTALL}"
        )
    own = _version("torch-neuronx")
    if sys.version_info < PYTHON:
        wanted, here = ".".join(map(str, PYTHON)), platform.python_version()
        return f"TorchNeuron needs Python {wanted} or newer, and this is {here}; there, {INSTALL}"
    if own is None:
        return f"torch-neuronx is not installed; {INSTALL}"
    torch = _version("torch")
    if torch is None:
        return f"torch is not installed, and torch-neuronx {own} needs it; {INSTALL}"
    if _two_numbers(own) < TORCH:
        return f"torch-neuronx {own} is older than its native device; {INSTALL}"
    if _two_numbers(own) != _two_numbers(torch):
        wanted = ".".join(map(str, _two_numbers(own)))
        return (
            f"torch-neuronx {own} goes with torch {wanted}, and torch {torch} is installed;"
            f" pip install 'torch=={wanted}.*'"
        )
    return None


def _devices(root: Path) -> Availability:
    """Chips have a file in /dev, and their cores a folder each in sysfs."""
    chips = sorted((root / "dev").glob("neuron[0-9]*"))
    own = _version("torch-neuronx")
    if not chips:
        return Availability(
            0, f"torch-neuronx {own} is installed, but the machine has no Neuron device"
        )
    folder = root / "sys/devices/virtual/neuron_device"
    cores = sum(max(1, len(list((folder / chip.name).glob("neuron_core*")))) for chip in chips)
    together = os.environ.get(TOGETHER) or "2"
    if together not in ("1", "2"):
        return Availability(
            0, f"{TOGETHER}={together} is neither 1 nor 2 cores; set it, or unset it"
        )
    count = max(1, cores // int(together))
    chip_word = "chip" if len(chips) == 1 else "chips"
    return Availability(
        count, f"{len(chips)} {chip_word}, {count} logical cores; torch-neuronx {own}"
    )


def _is_placeholder(name: str) -> bool:
    try:
        return PLACEHOLDER in (distribution(name).read_text("METADATA") or "")
    except PackageNotFoundError:
        return False


def _version(name: str) -> str | None:
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return None


def _two_numbers(version: str) -> tuple[int, ...]:
    """ "2.14.3.0+x" -> (2, 14)."""
    digits = version.partition("+")[0].split(".")[:2]
    return tuple(int(one) for one in digits if one.isdigit())


def missing_kernels() -> str | None:
    """Why the vendor's library of kernels cannot be used; it comes with the compiler."""
    return None if find_spec("nkilib") else "nkilib, the vendor's kernels, is not installed"


def versions() -> str:
    """Of all that decides what a program is."""
    return " ".join(f"{name} {_version(name)}" for name in PACKAGES)
