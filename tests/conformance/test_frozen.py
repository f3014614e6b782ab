"""Plugins as they were written for older contracts work on: `frozen/` is never edited again.

A plugin that breaks here would break at its author's, too: the core is to be changed, not this.
"""

import hashlib
import importlib
import os
import sys
from pathlib import Path

import pytest

from engine.platform import API_VERSION, PlatformSpec
from engine.testing.checks import Subject
from engine.testing.checks.runner import Bench, alone
from engine.testing.conformance import PlatformTests

FROZEN = Path(__file__).parent / "frozen"

#: Of each contract's files, as they were frozen.
DIGESTS = {
    "contract_1_0": "2a7b11763d156d4113d5c00769b7aa69939b55843de2c803cb96e98142bc47a5",
    "contract_1_1": "83822cd5d4dd830c513e75e5c59a9efd9163f65bcdd95d92f38a3f8d1209e40a",
    "contract_1_2": "eda499b6b4a495b798ef12c0aa24706d481ceedfd7bf7ee1179bcd4a775c1503",
    "contract_1_3": "802576036b61488e97a38cf3dc7cf2efa646af35b46736a78bfafd794a778ff0",
    "contract_1_4": "5d55f3339390904f99bb412cea98d1f7dff691521a4fab1819b557c3c5045a12",
}


def digest(folder: Path) -> str:
    """Of the names and contents of all files."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(path.relative_to(folder).as_posix().encode())
        found.update(path.read_bytes())
    return found.hexdigest()


@pytest.fixture(scope="module")
def frozen():
    """Gives the spec of an old plugin, importable here and in processes started from here."""
    folders = [str(FROZEN / contract) for contract in DIGESTS]
    with pytest.MonkeyPatch.context() as patch:
        for folder in folders:
            patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", os.pathsep.join(folders))
        yield load
    for name in [name for name in sys.modules if name.startswith("engine_frozen_")]:
        del sys.modules[name]


def load(version: str) -> PlatformSpec:
    [spec] = importlib.import_module(f"engine_frozen_{version}").engine_platforms()
    return spec


class Frozen(PlatformTests):
    """What a change of the core may break: attention's own cases are the plugin's affair."""

    levels = ("discovery", "memory", "ops", "runner", "scheduler", "shapes")
    version = ""

    @pytest.fixture
    def platform(self, frozen):
        return frozen(self.version)


class TestContract10(Frozen):
    version = "1_0"


class TestContract11(Frozen):
    version = "1_1"


class TestContract12(Frozen):
    version = "1_2"


class TestContract13(Frozen):
    levels = (*Frozen.levels, "attention")  # with a prologue of its own
    version = "1_3"


class TestContract14(Frozen):
    version = "1_4"


del Frozen  # the classes made from it are the tests


def test_there_is_a_frozen_plugin_of_every_older_contract():
    older = {f"contract_{API_VERSION[0]}_{minor}" for minor in range(API_VERSION[1])}
    assert {path.name for path in FROZEN.iterdir()} == older == set(DIGESTS)


@pytest.mark.parametrize("contract", DIGESTS)
def test_a_frozen_plugin_is_as_it_was(contract):
    assert digest(FROZEN / contract) == DIGESTS[contract], "put back what was frozen"


def test_the_plugin_of_contract_1_1_still_quantizes(frozen, model):
    """Through the fact that 1.1 brought: rounded to 8 bits, so near the right answer, not on it."""
    subject = Subject(frozen("1_1"), model)
    try:
        with subject.engine(quantization="int8", num_blocks=8, max_requests=2) as engine:
            assert "operations from frozen_1_1" in engine.facts.ledger
        bench = Quantized(subject, "float32")
        assert 1e-3 < alone(bench) < 0.5
    finally:
        subject.close()


class Quantized(Bench):
    def engine(self, **settings):
        return super().engine(quantization="int8", **settings)
