"""What is told of AMD's GPUs without opening one: the machine's files are made up."""

import os

import pytest

from engine_rocm import installed

ROCM = "__version__ = '2.13.0+rocm6.4'\ncuda = None\nhip: str = '6.4.43482'\n"
CPU = "__version__ = '2.13.0+cpu'\ncuda = None\nhip = None\n"
CUDA = "__version__ = '2.13.0+cu128'\ncuda = '12.8'\nhip = None\n"


@pytest.fixture
def folders(tmp_path):
    return torch_of(tmp_path / "site", ROCM)


@pytest.fixture
def root(tmp_path):
    """A machine with two MI300X and its processor, which is a node too."""
    return machine(tmp_path / "root", [90402, 90402])


def torch_of(folder, version):
    package = folder / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('torch must not be imported')")
    (package / "version.py").write_text(version)
    return [str(folder)]


def machine(root, versions):
    (root / "dev/dri").mkdir(parents=True)
    (root / "dev/kfd").touch()
    nodes = root / "sys/class/kfd/kfd/topology/nodes"
    (nodes / "0").mkdir(parents=True)
    (nodes / "0/properties").write_text("cpu_cores_count 96\nsimd_count 0\n")
    for number, version in enumerate(versions, start=1):
        (nodes / str(number)).mkdir()
        (nodes / str(number) / "properties").write_text(
            f"cpu_cores_count 0\nsimd_count 1216\ngfx_target_version {version}\n"
            f"drm_render_minor {127 + number}\nunique_id {0xAB00 + number}\n"
        )
        (root / f"dev/dri/renderD{127 + number}").touch()
    return root


def test_gpus_are_counted_by_architecture_with_torch(root, folders):
    found = installed.probe(root, {}, folders)
    assert found.devices == 2
    assert found.detail == "2 x AMD GPU gfx942; torch 2.13.0+rocm6.4 for ROCm 6.4.43482"


@pytest.mark.parametrize(
    ("version", "name"),
    [
        (90010, "gfx90a"),
        (90402, "gfx942"),
        (90500, "gfx950"),
        (110000, "gfx1100"),
        (120001, "gfx1201"),
    ],
)
def test_the_kernel_s_number_of_an_architecture_is_its_name(version, name):
    assert installed.architecture(version) == name


@pytest.mark.parametrize(
    ("variables", "devices"),
    [
        ({"HIP_VISIBLE_DEVICES": "1"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "1"}, 1),
        ({"HIP_VISIBLE_DEVICES": "0,1", "CUDA_VISIBLE_DEVICES": "1"}, 2),
        ({"ROCR_VISIBLE_DEVICES": "GPU-000000000000ab02"}, 1),
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}, 1),
    ],
)
def test_the_variables_of_visible_gpus_count(root, folders, variables, devices):
    assert installed.probe(root, variables, folders).devices == devices


@pytest.mark.parametrize(
    "variables",
    [
        {"HIP_VISIBLE_DEVICES": ""},
        {"CUDA_VISIBLE_DEVICES": "-1"},
        {"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "1"},  # counts in what is left
    ],
)
def test_variables_that_leave_no_gpu_are_named(root, folders, variables):
    found = installed.probe(root, variables, folders)
    assert not found
    assert all(f"{name}={value!r}" in found.detail for name, value in variables.items())
    assert "leaves none of 2 GPUs" in found.detail


@pytest.mark.parametrize(
    ("version", "why"),
    [
        (CPU, "torch 2.13.0+cpu is built without ROCm; pip install --force-reinstall"),
        (CUDA, "torch 2.13.0+cu128 is built for CUDA 12.8, not for ROCm; pip install"),
    ],
)
def test_a_torch_for_something_else_is_told_with_what_brings_the_right_one(
    root, tmp_path, version, why
):
    found = installed.probe(root, {}, torch_of(tmp_path / "other", version))
    assert not found
    assert found.detail.startswith(why)


def test_without_torch_one_sentence_says_what_to_install(root, tmp_path):
    found = installed.probe(root, {}, [str(tmp_path)])
    assert found.devices == 0
    assert found.detail.startswith("torch is not installed; pip install ")
    assert "https://download.pytorch.org/whl/rocm" in found.detail


def test_without_a_driver_the_container_is_thought_of(tmp_path, folders):
    found = installed.probe(tmp_path, {}, folders)
    assert not found
    assert "/dev/kfd does not exist" in found.detail
    assert "--device /dev/kfd --device /dev/dri" in found.detail


def test_a_device_that_the_user_may_not_open_is_told_with_the_groups(root, folders, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    found = installed.probe(root, {}, folders)
    assert not found
    assert "groups render and video" in found.detail


def test_a_container_has_the_gpus_whose_device_files_it_has(root, folders):
    (root / "dev/dri/renderD128").unlink()
    assert installed.probe(root, {}, folders).devices == 1
    (root / "dev/dri/renderD129").unlink()
    found = installed.probe(root, {}, folders)
    assert not found
    assert "no GPU of it that computes" in found.detail


def test_models_are_those_of_visible_gpus_in_their_order(tmp_path):
    root = machine(tmp_path, [110000, 90402])
    assert installed.models(root, {}) == ["gfx1100", "gfx942"]
    assert installed.models(root, {"HIP_VISIBLE_DEVICES": "1"}) == ["gfx942"]


def test_settings_and_sheet_are_those_of_the_first_gpu():
    from engine_rocm import sheets

    assert sheets.defaults(["gfx942"])["max_requests"] == 512
    assert sheets.defaults(["gfx1100"]) == sheets.defaults([]) == {"overlap": True}
    assert sheets.profile(["gfx90a"]).name == "mi250x"
    assert sheets.profile(["gfx906"]) is None
