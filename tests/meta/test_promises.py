"""Promises that the repository makes about itself."""

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from plugin_packages import PACKAGES

from engine import hooks
from engine.platform import API_VERSION

ROOT = Path(__file__).parents[2]
CORE = ROOT / "core" / "engine"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

DEVICES = re.compile(
    r"(?<![a-z])(cuda|rocm|hip|hpu|gaudi|neuron|tpu|xla|nccl|nvidia|amd|triton)(?![a-z])", re.I
)
MODEL = CORE / "embedded" / "model"  # weights, tokenizer and model card: data, not code
SOURCES = sorted(CORE.rglob("*.py"))
TEXTS = sorted(
    path
    for path in CORE.rglob("*")
    if path.is_file() and "__pycache__" not in path.parts and MODEL not in path.parents
)
HOOKS = sorted(name for name in vars(hooks) if name.startswith("engine_"))
PLATFORMS = sorted(PROJECT["project"]["entry-points"]["engine.platforms"].values())


def name_of(path: Path) -> str:
    return str(path.relative_to(CORE))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_core_names_no_device_and_no_vendor(path: Path) -> None:
    assert DEVICES.findall(path.read_text()) == []


SHARED = ROOT / "platforms" / "triton" / "engine_triton"
VENDORS = re.compile(r"(?<![a-z])(cuda|rocm|hip|nccl|rccl|nvidia|amd|nvml|cublas)(?![a-z])", re.I)
#: Here the facts of each architecture lie, and what compiles for one that is not here.
OF_VENDORS = {"architecture.py", "offline.py"}


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(SHARED.rglob("*.py")) if path.name not in OF_VENDORS],
    ids=lambda path: path.name,
)
def test_what_two_platforms_share_names_no_vendor(path: Path) -> None:
    assert VENDORS.findall(path.read_text()) == []


def test_the_search_for_device_names_finds_them_inside_identifiers_only_as_words() -> None:
    assert DEVICES.findall("is_cuda torch.cuda NCCL_DEBUG tpu0") == ["cuda", "cuda", "NCCL", "tpu"]
    assert DEVICES.findall("a chip's relationship to neurons") == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_function_in_core_is_longer_than_50_lines(path: Path) -> None:
    lengths = {f.name: (f.end_lineno or f.lineno) - f.lineno + 1 for f in functions(path)}
    assert {name: length for name, length in lengths.items() if length > 50} == {}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_file_in_core_is_longer_than_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_core_has_no_stub_and_loads_no_pickle(path: Path) -> None:
    text = path.read_text()
    stub = r"raise NotImplementedError(?!\(\"override)|\bTODO\b|\bFIXME\b|\bSKELETON\b"
    assert re.findall(stub, text) == []
    assert re.findall(r"^\s*(?:import|from) pickle|torch\.load\(", text, re.M) == []


def test_the_heart_of_the_engine_can_be_read_in_an_hour() -> None:
    parts = [CORE / f"{name}.py" for name in ("loop", "scheduler", "batch", "request")]
    parts += sorted((CORE / "kvcache").rglob("*.py"))
    lines = {path.name: len(path.read_text().splitlines()) for path in parts}
    assert sum(lines.values()) <= 1300, lines


HEAVY = {
    *("torch", "numpy", "transformers", "tokenizers", "fastapi", "uvicorn", "zmq"),
    *("jax", "torchax", "triton"),
}


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["engine", "engine.plugins", "engine.platform", *PLATFORMS])
def test_importing_the_engine_or_a_plugin_imports_no_driver(module: str) -> None:
    assert modules_after(f"import {module}") & HEAVY == set()


def test_importing_the_engine_takes_less_than_300_ms() -> None:
    """Processor time: what else runs on the machine does not count."""
    code = "from time import process_time as now; t = now(); import engine; print(now() - t)"
    seconds = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True).stdout)
        for _ in range(5)
    ]
    assert min(seconds) < 0.3, seconds


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_with_its_arguments(hook: str) -> None:
    function = getattr(hooks, hook)
    documented = f"{function.__doc__}\n{section_of(hook)}"
    assert function.__doc__
    for argument in inspect.signature(function).parameters:
        assert f"`{argument}`" in documented, argument


def section_of(hook: str) -> str:
    """The part of docs/plugins.md under the hook's name; it must exist."""
    text = (ROOT / "docs" / "plugins.md").read_text()
    heading = f"### `{hook}("
    assert heading in text, f"docs/plugins.md has no section {heading}"
    return text.partition(heading)[2].partition("\n#")[0]


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_exercised_by_an_installed_plugin_in_the_tests(hook: str) -> None:
    assert any(f"@hookimpl\ndef {hook}(" in package.source for package in PACKAGES.values())


def test_the_contracts_version_has_an_entry_in_its_changelog() -> None:
    changelog = (CORE / "platform" / "CHANGELOG.md").read_text()
    assert f"## {API_VERSION[0]}.{API_VERSION[1]}\n" in changelog


def contract(id: str) -> dict[str, list[str]]:
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    return next(entry for entry in contracts if entry["id"] == id)


def test_platforms_are_kept_from_every_part_of_the_core_but_the_contract() -> None:
    parts = {p.stem for p in CORE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    open_to_platforms = {"__init__", "platform", "compiled", "config", "errors"}
    forbidden = {name.removeprefix("engine.") for name in closed_to_platforms()}
    assert parts - open_to_platforms == forbidden


def closed_to_platforms() -> list[str]:
    return contract("platforms-see-the-contract")["forbidden_modules"]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_platform_is_packaged_checked_and_kept_apart(platform: str) -> None:
    tools = PROJECT["tool"]
    packages = tools["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert any(package.endswith(f"/{platform}") for package in packages)
    assert platform in tools["mypy"]["packages"]
    assert platform in tools["importlinter"]["root_packages"]
    assert platform in contract("no-platform-by-name")["forbidden_modules"]
    assert platform in contract("platforms-see-the-contract")["source_modules"]


def test_every_direct_dependency_has_one_pinned_version_for_every_machine() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    groups = PROJECT["project"]["optional-dependencies"].values()
    wanted = [*PROJECT["project"]["dependencies"], *(one for group in groups for one in group)]
    names = {re.split(r"[\[<>=!~ ]", wish)[0] for wish in wanted}
    canonical = {name.lower().replace("_", "-") for name in pins}
    assert {name for name in names if name.lower() not in canonical} == set()
    assert not any("+" in version for version in pins.values())
