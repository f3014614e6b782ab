"""docs/devices.md says what the certificates say, and nothing else."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("device_table", ROOT / "tools/device_table.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def certificate(*cases, **capabilities):
    declared = {
        "dtypes": ["float32"],
        "kv_dtypes": ["float32", "int8"],
        "quantization": [],
        "world_size": 1,
        "prefix_reuse": False,
        "chunked_prefill": False,
        "mixed_batches": False,
        "overlap": False,
        "static_shapes": False,
    }
    found = [
        {"id": name, "level": name.partition("/")[0], "status": status, "reason": f"of {name}"}
        for name, status in cases
    ]
    return {
        "format": 2,
        "passed": True,
        "date": "2026-11-21",
        "platform": "chip",
        "device": "chip:fast",
        "devices": "1 x chip",
        "system": "Linux",
        "seconds": 3.4,
        "contract": {"plugin": [1, 2]},
        "versions": {"torch": "2.13", "absent": None},
        "capabilities": {**declared, **capabilities},
        "levels": [{"name": "runner", "passed": 3, "failed": 0, "skipped": 2, "known": 0}],
        "cases": found,
    }


def cells(page, title):
    [row] = [line for line in page.splitlines() if line.startswith(f"| {title} |")]
    return [cell.strip() for cell in row.split("|")[2:-1]]


def test_the_page_is_what_the_tool_writes(tool):
    certificates = tool.read_certificates(tool.CERTIFICATES)
    extras = tool.read_extras(ROOT / "pyproject.toml")
    stand_ins = tool.read_stand_ins(tool.STAND_INS)
    assert tool.PAGE.read_text() == tool.page(certificates, extras, stand_ins), (
        "run python tools/device_table.py"
    )
    assert "cpu" in {one["platform"] for one in certificates}


def test_a_device_without_a_certificate_is_untested(tool):
    page = tool.page([certificate()], ["chip", "other"], {})
    assert cells(page, "") == ["chip:fast", "other"]
    assert cells(page, "**certified**") == ["in part, 2026-11-21", "untested on hardware"]
    assert cells(page, "prefix reuse") == ["no", "untested"]
    assert cells(page, "level runner") == ["3 passed, 2 skipped", "untested"]


@pytest.mark.parametrize(
    ("status", "cell"), [("passed", "yes"), ("failed", "fails"), ("known", "fails")]
)
def test_what_is_declared_is_there_only_when_its_cases_passed(tool, status, cell):
    one = certificate(("runner/float32/prefix-hit", status), prefix_reuse=True)
    assert cells(tool.page([one], [], {}), "prefix reuse") == [cell]


def test_what_is_declared_and_was_not_looked_at_is_only_declared(tool):
    page = tool.page([certificate(world_size=8, overlap=True)], [], {})
    assert cells(page, "overlapped steps") == ["declared"]
    assert cells(page, "tensor parallel") == ["declared, up to 8"]
    assert cells(page, "bfloat16") == ["no"]


def test_a_certificate_of_every_level_is_whole(tool):
    counts = {"passed": 1, "failed": 0, "skipped": 0, "known": 0}
    levels = [{"name": name, **counts} for name in tool.LEVELS if name != "perf"]
    one = {**certificate(), "levels": levels}
    assert cells(tool.page([one], [], {}), "**certified**") == ["yes, 2026-11-21"]
    assert cells(tool.page([{**one, "passed": False}], [], {}), "**certified**") == [
        "NO, 2026-11-21"
    ]


def test_a_stand_in_says_nothing_of_its_device_and_has_a_table_of_its_own(tool):
    """However well its platform's code did."""
    stand_in = {"of": "other", "replaces": "no wire is connected"}
    one = {**certificate(("runner/float32/alone", "passed")), "platform": "chip"}
    page = tool.page([one], ["other"], {"chip": stand_in})
    on_devices, _, without = page.partition("## Without the device")
    assert cells(on_devices, "") == ["other"]
    assert cells(on_devices, "**certified**") == ["untested on hardware"]
    assert cells(on_devices, "float32") == ["untested"]
    assert cells(without, "") == ["chip:fast"]
    assert cells(without, "float32") == ["yes"]
    assert "* the code of `other`: no wire is connected" in without


def test_every_stand_in_is_of_a_platform_that_can_be_installed_and_says_what_it_replaces(tool):
    extras = tool.read_extras(ROOT / "pyproject.toml")
    for one in tool.read_stand_ins(tool.STAND_INS).values():
        assert one["of"] in extras
        assert one["replaces"]


def test_the_reasons_of_failures_are_told(tool):
    one = certificate(("runner/float32/alone", "failed"), ("runner/float32/chunked", "passed"))
    page = tool.page([one], [], {})
    assert "* of runner/float32/alone" in page
    assert "of runner/float32/chunked" not in page
    assert "torch 2.13" in page
    assert "absent" not in page


def test_a_certificate_of_another_format_is_refused(tool, tmp_path):
    (tmp_path / "old.json").write_text('{"format": 1}')
    with pytest.raises(ValueError, match="certify the device anew"):
        tool.read_certificates(tmp_path)
