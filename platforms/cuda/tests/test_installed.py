"""What is told of NVIDIA's GPUs without opening one: the machine's files are made up."""

import re

import pytest

from engine_cuda import installed

CUDA = "__version__ = '2.13.0+cu128'\ncuda: str = '12.8'\nhip = None\n"
CPU = "__version__ = '2.13.0+cpu'\ncuda = None\nhip = None\n"
ROCM = "__version__ = '2.13.0+rocm6.4'\ncuda = None\nhip = '6.4.43482'\n"
DRIVER = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build\n"
    "GCC version:  gcc version 12.2.0\n"
)


@pytest.fixture
def folders(tmp_path):
    return torch_of(tmp_path / "site", CUDA)


@pytest.fixture
def root(tmp_path):
    """A machine with three H200."""
    return machine(tmp_path / "root", ["NVIDIA H200"] * 3)


def torch_of(folder, version):
    package = folder / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('torch must not be imported')")
    (package / "version.py").write_text(version)
    return [str(folder)]


def machine(root, models, driver="570.86.15"):
    (root / "dev").mkdir(parents=True)
    proc = root / "proc/driver/nvidia"
    proc.mkdir(parents=True)
    (proc / "version").write_text(DRIVER.format(driver))
    (root / "dev/nvidiactl").touch()
    for minor, model in enumerate(models):
        (root / f"dev/nvidia{minor}").touch()
        folder = proc / f"gpus/0000:{minor:02x}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text(
            f"Model: \t\t {model}\nIRQ:   \t\t 42\nGPU UUID: \t GPU-{minor}aaa-bbb\n"
            f"Bus Type: \t PCIe\nDevice Minor: \t {minor}\n"
        )
    return root


def test_gpus_are_counted_and_named_with_driver_and_torch(root, folders):
    found = installed.probe(root, {}, folders)
    assert found.devices == 3
    assert found.detail == (
        "3 x NVIDIA H200; driver 570.86.15, torch 2.13.0+cu128; attention=flash3: not installed"
    )


@pytest.mark.parametrize(
    ("visible", "devices"), [("0", 1), ("2,1", 2), ("GPU-1aaa-bbb", 1), ("0,9", 1)]
)
def test_the_variable_of_visible_gpus_counts(root, folders, visible, devices):
    assert installed.probe(root, {"CUDA_VISIBLE_DEVICES": visible}, folders).devices == devices


@pytest.mark.parametrize("visible", ["", "-1", "7"])
def test_a_variable_that_leaves_no_gpu_is_named(root, folders, visible):
    found = installed.probe(root, {"CUDA_VISIBLE_DEVICES": visible}, folders)
    assert not found
    assert f"CUDA_VISIBLE_DEVICES={visible!r} leaves none of 3 GPUs" in found.detail


@pytest.mark.parametrize(
    ("version", "why"),
    [
        (CPU, r"torch 2\.13\.0\+cpu is built without CUDA; pip install --force-reinstall torch"),
        (ROCM, r"torch 2\.13\.0\+rocm6\.4 is built for ROCm 6\.4\.43482, not for CUDA; pip"),
    ],
)
def test_a_torch_for_something_else_is_told_with_what_brings_the_right_one(
    root, tmp_path, version, why
):
    found = installed.probe(root, {}, torch_of(tmp_path / "other", version))
    assert not found
    assert re.match(why, found.detail)


def test_without_torch_one_sentence_says_what_to_install(root, tmp_path):
    found = installed.probe(root, {}, [str(tmp_path)])
    assert (found.devices, found.detail) == (
        0,
        "torch is not installed; pip install 'engine[cuda]'",
    )


def test_without_a_driver_the_container_is_thought_of(tmp_path, folders):
    found = installed.probe(tmp_path, {}, folders)
    assert not found
    assert "there is no NVIDIA driver" in found.detail
    assert "--gpus all" in found.detail


@pytest.mark.parametrize(
    ("driver", "devices"), [("525.60.13", 1), ("525.60", 1), ("524.99", 0), ("470.82.01", 0)]
)
def test_a_driver_too_old_for_torch_s_toolkit_is_told(tmp_path, folders, driver, devices):
    found = installed.probe(machine(tmp_path, ["NVIDIA L4"], driver), {}, folders)
    assert found.devices == devices
    if not devices:
        assert f"the NVIDIA driver is {driver}" in found.detail
        assert "torch for CUDA 12.8 needs 525.60 or newer" in found.detail


def test_a_container_has_the_gpus_whose_device_files_it_has(root, folders):
    (root / "dev/nvidia0").unlink()
    (root / "dev/nvidia2").unlink()
    assert installed.probe(root, {}, folders).devices == 1
    (root / "dev/nvidia1").unlink()
    found = installed.probe(root, {}, folders)
    assert found.detail == "there is an NVIDIA driver, but no GPU: /dev has no nvidia0"


def test_device_files_alone_will_do_where_the_driver_s_are_hidden(tmp_path, folders):
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    found = installed.probe(tmp_path, {}, folders)
    assert (found.devices, found.detail) == (
        2,
        "2 x NVIDIA GPU; driver of an unknown version, torch 2.13.0+cu128;"
        " attention=flash3: not installed",
    )


def test_the_windows_subsystem_has_a_device_of_its_own(tmp_path, folders):
    for name in ("dev/dxg", "usr/lib/wsl/lib/libcuda.so.1"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    assert installed.probe(tmp_path, {}, folders).devices == 1


def test_models_are_those_of_visible_gpus_in_their_order(tmp_path):
    root = machine(tmp_path, ["NVIDIA L4", "NVIDIA H200"])
    assert installed.models(root, {}) == ["NVIDIA L4", "NVIDIA H200"]
    assert installed.models(root, {"CUDA_VISIBLE_DEVICES": "1,0"}) == ["NVIDIA H200", "NVIDIA L4"]


def test_settings_and_sheet_are_those_of_the_first_gpu():
    from engine_cuda import sheets

    assert sheets.defaults(["NVIDIA H200", "NVIDIA L4"])["max_requests"] == 512
    assert sheets.defaults(["NVIDIA L4"]) == sheets.defaults([]) == {"overlap": True}
    assert sheets.profile(["NVIDIA H200"]).name == "h200"
    assert sheets.profile([]) is None
