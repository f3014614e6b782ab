"""`engine plugin new` writes a package that works untouched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.cli import main, new_plugin
from engine.errors import ConfigError
from engine.platform import API_VERSION

ENGINE = str(Path(sys.executable).parent / "engine")
FIRST_LEVELS = ("discovery", "memory", "ops", "attention", "runner")
FILES = {
    "README.md",
    "pyproject.toml",
    "engine_paper_npu/__init__.py",
    "engine_paper_npu/attention.py",
    "engine_paper_npu/memory.py",
    "engine_paper_npu/platform.py",
    "engine_paper_npu/py.typed",
    "tests/test_conformance.py",
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "engine-paper-npu"
    assert main(["plugin", "new", "paper_npu", "--folder", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def environment(package: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One in which pip has installed the package, as it was written."""
    target = tmp_path_factory.mktemp("installed")
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", "-q", *options, "--target", str(target)]
    subprocess.run([*command, str(package)], check=True)
    return {**os.environ, "PYTHONPATH": str(target), "ENGINE_PLUGINS": "paper_npu"}


def test_it_writes_a_whole_package(package: Path) -> None:
    written = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    assert written == FILES


def test_nothing_of_the_templates_is_left_open(package: Path) -> None:
    for name in FILES:
        assert "$" not in (package / name).read_text(), name


def test_it_states_this_version_of_the_contract_as_a_literal(package: Path) -> None:
    major, minor = API_VERSION
    assert f"api=({major}, {minor})," in (package / "engine_paper_npu/__init__.py").read_text()


def test_what_it_writes_is_formatted_and_linted(package: Path) -> None:
    ruff = [sys.executable, "-m", "ruff"]
    options = ["--isolated", "--no-cache", "--line-length", "100", "."]
    for command in (["format", "--check"], ["check", "--select", "E,F,I,UP,B,SIM,RUF"]):
        subprocess.run([*ruff, *command, *options], cwd=package, check=True)


def test_it_is_found_and_explained_once_it_is_installed(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [ENGINE, "explain", "--device", "paper_npu"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "platform paper_npu (engine-paper-npu 0.1.0)" in done.stdout
    assert "PaperNpuAttention (engine_paper_npu.attention)" in done.stdout
    assert "rms_norm of width 128, 9 times: paper_npu" in done.stdout


def test_it_passes_the_first_levels_of_its_own_tests_untouched(
    package: Path, environment: dict[str, str]
) -> None:
    options = ["-q", "-rfE", "-p", "no:cacheprovider", "-p", "no:asyncio"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-k", " or ".join(FIRST_LEVELS), "tests"],
        cwd=package,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    last = done.stdout.splitlines()[-1]
    assert int(last.split(" passed")[0].split()[-1]) > 100, last


def test_without_a_folder_it_is_named_after_the_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plugin", "new", "paper"]) == 0
    assert (tmp_path / "engine-paper" / "engine_paper" / "platform.py").is_file()
    assert "engine certify --device paper" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["Paper", "1st", "my-npu", "my__npu", "_npu", "npu_", "", "npu:0"])
def test_a_name_that_no_platform_can_have_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be called"):
        new_plugin.check_name(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("auto", "lets the engine choose"),
        ("cpu", "a platform 'cpu' is installed already by engine"),
    ],
)
def test_a_name_that_is_taken_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        new_plugin.check_name(name)


def test_a_package_of_the_same_module_is_not_shadowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "engine_hidden.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="a package 'engine_hidden' is installed already"):
        new_plugin.check_name("hidden")


def test_nothing_that_exists_is_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    assert main(["plugin", "new", "paper", "--folder", str(tmp_path / "mine")]) == 2
    assert "exists already; name another with --folder" in capsys.readouterr().err
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made"):
        new_plugin.write(tmp_path / "file" / "below", new_plugin.words("paper"))
