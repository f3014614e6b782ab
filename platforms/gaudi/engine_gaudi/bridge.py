"""Intel's package between torch and the device: whether it is there, and fits. Without torch."""

import importlib
import os
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from engine.platform import Availability

PACKAGE = "habana_frameworks"
DISTRIBUTION = "habana-torch-plugin"
INSTALL = (
    "wget https://vault.habana.ai/artifactory/gaudi-installer/latest/habanalabs-installer.sh"
    " && bash habanalabs-installer.sh install --type pytorch"
)
#: One node a device, made by the driver; other drivers' devices of /dev/accel have none.
NODES = Path("/dev/accel")
NODE = "accel_controlD*"
#: Written by the driver when it is loaded.
DRIVER_VERSION = Path("/sys/module/habanalabs/version")
#: The modules (sockets of the board) that a process may use, by number: "4,5,6,7".
VISIBLE_MODULES = "HABANA_VISIBLE_MODULES"


def probe() -> Availability:
    """The devices, or why there are none. Looks at files only."""
    folder = find()
    if folder is None:
        why = f"Intel's bridge from torch to Gaudi ({PACKAGE}) is not installed; {INSTALL}"
        return Availability(0, why)
    if misfits := misfit(folder):
        return Availability(0, f"{misfits}; {INSTALL}")
    count = num_devices()
    if not count:
        return Availability(
            0,
            f"Intel's bridge {release() or ''} is installed, but this machine shows no Gaudi device"
            f" ({NODES / NODE}, {VISIBLE_MODULES}); hl-smi lists what the driver sees",
        )
    return Availability(count, f"{count} x Gaudi, bridge {release() or 'of unknown version'}")


def find() -> Path | None:
    """The folder of the bridge, where it is installed. Imports nothing of it."""
    try:
        spec = find_spec(PACKAGE)
    except ValueError:  # in sys.modules, without a spec
        return None
    places = spec.submodule_search_locations if spec is not None else None
    folders = (Path(place) / "torch" for place in places or ())
    return next((one for one in folders if (one / "__init__.py").is_file()), None)


def misfit(folder: Path) -> str | None:
    """Why the bridge cannot work with what else is installed, or None. It is compiled against
    one version of torch, and refuses to be imported beside another."""
    installed = _version("torch")
    if installed is None:
        return "Intel's bridge is installed, but torch is not"
    needed = _read(folder / "required_version.txt")
    if needed and _first_two(needed) != _first_two(installed):
        return f"Intel's bridge was built for torch {needed}, and torch {installed} is installed"
    driver, bridge = _read(DRIVER_VERSION), release()
    if driver and bridge and _first_two(driver) != _first_two(bridge):
        return f"Intel's bridge is of release {bridge}, and the loaded driver of {driver}"
    return None


def num_devices() -> int:
    found = len(list(NODES.glob(NODE)))
    chosen = visible_modules()
    return found if chosen is None else min(found, len(chosen))


def visible_modules() -> list[str] | None:
    """As the user or the container chose them; None: all."""
    named = os.environ.get(VISIBLE_MODULES, "")
    modules = [part.strip() for part in named.split(",")]
    return modules if all(part.isdecimal() for part in modules) else None


def release() -> str | None:
    return _version(DISTRIBUTION)


def load() -> None:
    """Import the bridge, if torch did not on its own: it brings the device and the compiler."""
    importlib.import_module(f"{PACKAGE}.torch.core")


def load_collectives() -> None:
    """Import what tells torch of `hccl`. Unless HLS_MODULE_ID is set, that sets it, by LOCAL_RANK
    and HABANA_VISIBLE_MODULES: before the device is opened, or it opens any."""
    importlib.import_module(f"{PACKAGE}.torch.distributed.hccl")


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _first_two(text: str) -> list[str]:
    """Of "2.10.0+hpu", the parts 2 and 10."""
    return text.split(".")[:2]
