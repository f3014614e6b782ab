"""`engine plugin new`: write a package with a platform that works, to start from."""

import argparse
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from importlib.metadata import entry_points
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from string import Template

from engine.errors import ConfigError
from engine.platform import API_VERSION
from engine.plugins import PLATFORMS

NAME = "plugin"
SUMMARY = "start a platform plugin of your own"
DESCRIPTION = (
    "`engine plugin new NAME` writes a package that is installed with pip, found as --device NAME,"
    " and keeps the platform contract. It computes with torch on the CPU: replace its parts by"
    " those of your device, and run `engine certify --device NAME` after each."
)
_SUFFIX = ".tmpl"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("new",), help="new: write a package")
    parser.add_argument("name", metavar="NAME", help="of the platform, as in --device NAME")
    parser.add_argument(
        "--folder",
        metavar="PATH",
        type=Path,
        help="where to write it; it must not exist yet (default: engine-NAME)",
    )


def run(arguments: argparse.Namespace) -> int:
    check_name(arguments.name)
    values = words(arguments.name)
    folder = arguments.folder or Path(values["distribution"])
    for path in write(folder, values):
        print(path)
    print(
        f"\nnext:\n  pip install --editable {folder}\n  engine certify --device {arguments.name}\n"
        f"then read {folder / 'README.md'}"
    )
    return 0


def check_name(name: str) -> None:
    """
    Raises:
        ConfigError: it cannot be a platform's name, or is taken.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise ConfigError(
            f"a platform cannot be called {name!r}: it takes a small letter, then small letters and"
            " digits, with single underscores between them, like my_npu"
        )
    if name == "auto":
        raise ConfigError("the name 'auto' is taken: --device auto lets the engine choose")
    if taken := [*entry_points(group=PLATFORMS, name=name)]:
        package = taken[0].dist
        where = f" by {package.name} {package.version}" if package else ""
        raise ConfigError(f"a platform {name!r} is installed already{where}; choose another name")
    if find_spec(module_of(name)) is not None:
        raise ConfigError(
            f"a package {module_of(name)!r} is installed already; choose another name than {name!r}"
        )


def module_of(name: str) -> str:
    return f"engine_{name}"


def words(name: str) -> Mapping[str, str]:
    """What the templates leave open."""
    major, minor = API_VERSION
    return {
        "name": name,
        "module": module_of(name),
        "distribution": module_of(name).replace("_", "-"),
        "class_name": "".join(part.capitalize() for part in name.split("_")),
        "major": str(major),
        "minor": str(minor),
    }


def write(folder: Path, values: Mapping[str, str]) -> list[Path]:
    """Fill the templates into a new folder; returns the files.

    Raises:
        ConfigError: the folder exists, or cannot be made.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise ConfigError(f"{folder} exists already; name another with --folder") from None
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error}") from error
    written = []
    for place, text in templates():
        parts = [values["module"] if part == "package" else part for part in place.parts]
        path = folder.joinpath(*parts)
        path.parent.mkdir(exist_ok=True)
        path.write_text(Template(text).substitute(values), encoding="utf-8")
        written.append(path)
    return written


def templates() -> Iterator[tuple[PurePosixPath, str]]:
    """Where each file belongs ("package" stands for the module), and its text."""
    root = resources.files("engine.cli") / "plugin_template"
    yield from _walk(root, PurePosixPath())


def _walk(folder: Traversable, place: PurePosixPath) -> Iterator[tuple[PurePosixPath, str]]:
    for entry in sorted(folder.iterdir(), key=lambda one: one.name):
        if entry.is_dir():
            yield from _walk(entry, place / entry.name)
        elif entry.name.endswith(_SUFFIX):
            name = entry.name.removesuffix(_SUFFIX)
            yield place / name, entry.read_text(encoding="utf-8")
