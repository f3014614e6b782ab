"""What this machine has, told from packages' metadata and the PCI bus: nothing is imported."""

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from engine.platform import Availability

INSTALL = "pip install 'engine[tpu]'"
#: What goes together: package, the first version that does, and the first that no longer does.
TORCH_TPU = (("torch_tpu", (0, 2), (0, 3)), ("torch", (2, 11), (2, 16)), ("libtpu", (0, 0, 50), ()))
TORCHAX = (("torchax", (0, 0, 14), ()), ("torch", (2, 13), ()), ("jax", (0, 10), (0, 11)))
#: On the PCI bus: the vendor, and its TPUs from v2 to v7.
VENDOR = "0x1ae0"
DEVICES = frozenset({"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"})
PCI = Path("/sys/bus/pci/devices")


def probe(bus: Path = PCI) -> Availability:
    """Through `torch_tpu`, whose kernels are traced by jax."""
    return _on_chips("torch_tpu", missing((*TORCH_TPU, TORCHAX[-1])), bus)


def probe_jax(bus: Path = PCI) -> Availability:
    return _on_chips("jax", missing((*TORCHAX, TORCH_TPU[-1])), bus)


def probe_simulated() -> Availability:
    if why := missing(TORCHAX):
        return Availability(0, why)
    return Availability(1, f"simulated by the CPU, through {versions('jax', 'torchax')}")


def _on_chips(through: str, why: str | None, bus: Path) -> Availability:
    if why:
        return Availability(0, why)
    names = versions(through, "libtpu")
    if not (found := chips(bus)):
        return Availability(0, f"{names} are installed, and there is no TPU on the PCI bus")
    return Availability(found, f"{found} TPU chips, {names}")


def missing(wanted: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]) -> str | None:
    """What has to be installed, or None."""
    for package, first, beyond in wanted:
        text = _version(package)
        if text is None:
            return f"{package} is not installed; {INSTALL}"
        numbers = tuple(int(number) for number in re.findall(r"\d+", text.partition("+")[0])[:3])
        if numbers < first or (beyond and numbers >= beyond):
            below = f", below {_dotted(beyond)}" if beyond else ""
            return (
                f"{package} {text} does not go with the other packages: from {_dotted(first)}"
                f"{below}; {INSTALL}"
            )
    return None


def versions(*packages: str) -> str:
    return ", ".join(f"{package} {_version(package)}" for package in packages)


def chips(bus: Path) -> int:
    found = [(_line(one / "vendor"), _line(one / "device")) for one in bus.glob("*")]
    return sum(vendor == VENDOR and device in DEVICES for vendor, device in found)


def _line(path: Path) -> str:
    """Empty where there is no such file, or it may not be read."""
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
