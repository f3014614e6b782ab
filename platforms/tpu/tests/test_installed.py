"""What is told about a machine, from its files alone."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest

import engine_tpu
from engine_tpu import installed, words
from engine_tpu.installed import INSTALL

GOOD = {
    "torch_tpu": "0.2.0",
    "torch": "2.13.0+cpu",
    "libtpu": "0.0.51",
    "jax": "0.10.2",
    "torchax": "0.0.14.dev20260814",
}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Makes one of these packages, with these (vendor, device) on its PCI bus."""

    def make(packages, bus=()):
        def version(name):
            if name not in packages:
                raise PackageNotFoundError(name)
            return packages[name]

        monkeypatch.setattr(installed, "version", version)
        for number, (vendor, device) in enumerate(bus):
            (tmp_path / str(number)).mkdir()
            (tmp_path / str(number) / "vendor").write_text(f"{vendor}\n")
            (tmp_path / str(number) / "device").write_text(f"{device}\n")
        return tmp_path

    return make


def test_a_machine_with_chips_and_packages_has_them(machine):
    bus = machine(GOOD, [("0x1ae0", "0x0063")] * 4 + [("0x1ae0", "0x0042"), ("0x8086", "0x0063")])
    found = installed.probe(bus)
    assert found.devices == 4
    assert found.detail == "4 TPU chips, torch_tpu 0.2.0, libtpu 0.0.51"
    assert installed.probe_jax(bus).detail == "4 TPU chips, jax 0.10.2, libtpu 0.0.51"


@pytest.mark.parametrize("lost", ["torch_tpu", "libtpu", "jax"])
def test_what_is_not_installed_is_named_with_the_command_that_installs_it(machine, lost):
    bus = machine({name: text for name, text in GOOD.items() if name != lost})
    found = installed.probe(bus)
    assert not found
    assert found.detail == f"{lost} is not installed; {INSTALL}"


def test_packages_without_a_chip_are_told_exactly_so(machine):
    bus = machine(GOOD, [("0x1ae0", "0x0042")])
    text = "libtpu 0.0.51 are installed, and there is no TPU on the PCI bus"
    assert installed.probe(bus).detail == f"torch_tpu 0.2.0, {text}"
    assert installed.probe_jax(bus).detail == f"jax 0.10.2, {text}"
    assert not installed.probe(bus)


@pytest.mark.parametrize(
    ("package", "version"), [("torch", "2.10.1"), ("torch", "2.16.0"), ("torch_tpu", "0.3.0")]
)
def test_versions_that_do_not_go_together_are_told(machine, package, version):
    bus = machine({**GOOD, package: version})
    detail = installed.probe(bus).detail
    assert detail.startswith(f"{package} {version} does not go with the other packages: from ")
    assert detail.endswith(INSTALL)


def test_simulated_chips_need_no_chip_and_no_compiler_of_chips(machine):
    machine({name: GOOD[name] for name in ("torch", "jax", "torchax")})
    found = installed.probe_simulated()
    assert found.devices == 1
    assert found.detail.startswith("simulated by the CPU")


def test_simulated_chips_are_never_taken_by_themselves():
    specs = {spec.name: spec for spec in engine_tpu.engine_platforms()}
    assert sorted(specs) == ["tpu", "tpu_jax", "tpu_simulated"]
    assert specs["tpu_simulated"].priority < 0, "the CPU platform has priority 0"
    assert specs["tpu_simulated"].environment(0)["JAX_PLATFORMS"] == "cpu"


def test_the_number_of_chips_is_a_word():
    assert words.chips(["chips=4"]) == 4
    assert words.chips([]) == 1
    assert words.refuses(["chips=8"]) is None
    for word in ("chips=0", "chips=9", "chips", "four"):
        assert words.refuses([word]) == f"it takes chips=N, N from 1 to 8, got {word!r}"


def test_a_process_that_cannot_use_torchax_is_told_why():
    """torch has one spare device, and whoever names it first has it."""
    code = (
        "import torch; torch.utils.rename_privateuse1_backend('npu');"
        "import engine_tpu; from engine.config import EngineConfig;"
        "engine_tpu.create_simulated(EngineConfig(device='tpu_simulated'), 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "UnsupportedError: torchax cannot be used in this process" in done.stderr
    assert "set TORCH_DEVICE_BACKEND_AUTOLOAD=0 before it starts" in done.stderr
