"""How a platform presents itself, before and just after it is made."""

import ast
import inspect
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from engine.config import DTYPES, resolve
from engine.platform import API_VERSION, Availability, Capabilities
from engine.testing.checks.case import Case
from engine.testing.checks.subject import Subject

#: Seconds that `probe` may take once its module is imported.
PROBE_S = 1.0

#: Packages that take long to import, or that may open a device.
HEAVY = ("jax", "jaxlib", "numpy", "onnxruntime", "tensorflow", "torch")

KV_DTYPES = {*DTYPES, "fp8_e4m3", "fp8_e5m2", "int8"} - {"auto"}


def has_a_proper_name(subject: Subject) -> None:
    """Lower case letters, digits and underscores, so that `--device NAME:INDEX` can be read."""
    name = subject.spec.name
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name), f"name {name!r} must match [a-z][a-z0-9_]*"
    assert name != "auto", "the name 'auto' is taken: it lets the engine choose"


def has_one_name(subject: Subject) -> None:
    """The spec and the object it creates bear one name."""
    assert subject.platform.name == subject.spec.name, (
        f"the spec is named {subject.spec.name!r}, the platform {subject.platform.name!r}"
    )


def speaks_this_contract(subject: Subject) -> None:
    """The first number is equal, the second not larger."""
    major, minor = subject.spec.api
    assert major == API_VERSION[0], f"written for contract {major}.{minor}, not {API_VERSION}"
    assert minor <= API_VERSION[1], f"needs contract {major}.{minor}, this is {API_VERSION}"


def states_the_version_as_a_literal(subject: Subject) -> None:
    """A plugin that imports the version claims to fit every one. Read from its source."""
    versions = [one for module in _modules(subject) for one in _stated_versions(module)]
    assert versions, "no PlatformSpec(…, api=…) call in the modules of `probe` and `create`"
    for node in versions:
        parts = node.elts if isinstance(node, ast.Tuple) else []
        literal = len(parts) == 2 and all(isinstance(one, ast.Constant) for one in parts)
        assert literal, f"api must be a literal like (1, 0), not {ast.unparse(node)}"


def probe_answers_quickly_and_always_the_same(subject: Subject) -> None:
    """The answer has a count and words for people."""
    first = subject.spec.probe()
    began = time.perf_counter()
    second = subject.spec.probe()
    took = time.perf_counter() - began
    assert isinstance(first, Availability), f"probe() returned {first!r}, not an Availability"
    assert first == second, f"probe() answered {first}, then {second}"
    assert first.devices >= 1, f"not available: {first.detail or 'no reason given'}"
    assert first.detail, "`detail` is empty; it names the devices"
    assert took < PROBE_S, f"probe() took {took:.1f} s; it must touch no driver"


def imports_no_driver(subject: Subject) -> None:
    """In a process of its own: importing the plugin and probing import nothing heavy."""
    names = {module.__name__ for module in _modules(subject)}
    function = subject.spec.probe
    code = (
        "import importlib, sys\n"
        f"modules = [importlib.import_module(name) for name in {sorted(names)!r}]\n"
        f"probe = importlib.import_module({function.__module__!r})\n"
        f"for part in {function.__qualname__!r}.split('.'):\n"
        "    probe = vars(probe).get(part, lambda: None)\n"
        "probe()\n"
        f"print(*sorted(set(sys.modules) & set({HEAVY!r})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"importing {sorted(names)} failed: {done.stderr[-500:]}"
    loaded = done.stdout.split()
    assert not loaded, f"importing the plugin and probing imports {', '.join(loaded)}"


def declares_sensible_capabilities(subject: Subject) -> None:
    """Known dtypes, at least one block size, no contradiction."""
    found = subject.capabilities
    assert isinstance(found, Capabilities), f"capabilities are {found!r}"
    assert found.dtypes, "declares no dtype"
    assert set(found.dtypes) <= set(DTYPES) - {"auto"}, f"unknown dtypes: {found.dtypes}"
    assert found.kv_dtypes, "declares no KV dtype"
    assert set(found.kv_dtypes) <= KV_DTYPES, f"unknown KV dtypes: {found.kv_dtypes}"
    sizes = found.block_sizes
    assert sizes, "declares no block size"
    assert all(size >= 1 for size in sizes), f"block sizes must be positive: {sizes}"
    assert len(set(sizes)) == len(sizes), f"a block size is declared twice: {sizes}"
    assert found.world_size >= 1, f"world_size must be at least 1, is {found.world_size}"


def prefers_settings_that_exist(subject: Subject) -> None:
    """`defaults()` names settings of the engine, with values in range."""
    resolve({}, subject.spec.defaults())


def sets_environment_variables_as_text(subject: Subject) -> None:
    """`environment(rank)` maps names to text."""
    for name, value in subject.spec.environment(0).items():
        text = isinstance(name, str) and isinstance(value, str)
        assert text, f"not text: {name!r}={value!r}"


def names_its_device_with_an_index(subject: Subject) -> None:
    """As torch spells it."""
    device = subject.platform.device
    assert re.fullmatch(r"[a-z0-9_]+:\d+", device), f"device {device!r} must be like 'name:0'"


def closes_twice(subject: Subject) -> None:
    """`close` may be called again."""
    platform = subject.create()
    platform.close()
    platform.close()


def alone_collectives_change_nothing(subject: Subject) -> None:
    """A group of one rank: what comes back is what went in."""
    import torch

    communicator = subject.platform.communicator((0,))
    assert (communicator.rank, communicator.size) == (0, 1), "a group of one has rank 0, size 1"
    x = torch.arange(6.0).reshape(2, 3)
    here = x.to(subject.platform.device)
    communicator.barrier()
    answers = {
        "all_reduce": communicator.all_reduce(here.clone()),
        "all_gather": communicator.all_gather(here.clone()),
        "reduce_scatter": communicator.reduce_scatter(here.clone()),
        "all_to_all": communicator.all_to_all(here.clone(), [2], [2]),
        "broadcast": communicator.broadcast(here.clone()),
    }
    communicator.close()
    for name, answer in answers.items():
        assert torch.equal(answer.cpu(), x), f"{name} of one rank changed its argument"


def _modules(subject: Subject) -> list[ModuleType]:
    found = []
    for part, function in (("probe", subject.spec.probe), ("create", subject.spec.create)):
        module = inspect.getmodule(function)
        assert module is not None, f"`{part}` must be a function or class of the plugin's package"
        found.append(module)
    return list(dict.fromkeys(found))


def _stated_versions(module: ModuleType) -> Iterator[ast.expr]:
    assert module.__file__, f"{module.__name__} has no source file"
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="PlatformSpec") | ast.Attribute(attr="PlatformSpec")):
                yield from (one.value for one in node.keywords if one.arg == "api")


def _case(check: Callable[[Subject], None], *, wide: bool = False) -> Case:
    name = check.__name__.replace("_", "-")
    return Case(id=f"discovery/{name}", level="discovery", check=check, wide=wide)


CASES = (
    _case(has_a_proper_name),
    _case(has_one_name),
    _case(speaks_this_contract),
    _case(states_the_version_as_a_literal),
    _case(probe_answers_quickly_and_always_the_same),
    _case(imports_no_driver),
    _case(declares_sensible_capabilities),
    _case(prefers_settings_that_exist),
    _case(sets_environment_variables_as_text),
    _case(names_its_device_with_an_index),
    _case(closes_twice),
    _case(alone_collectives_change_nothing, wide=True),
)
