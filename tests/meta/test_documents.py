"""What the documents say is what the repository does."""

import ast
import re
from pathlib import Path

import pytest
from settings_table import engine_table, server_table

from engine.cli import COMMANDS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def shell_lines(text: str) -> list[str]:
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.S)
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]


def test_the_readmes_test_command_is_what_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    commands = [line for line in ci if line and not line.startswith(("#", "set ", "cd "))]
    assert commands == ["exec make test"]
    assert "make test" in shell_lines(README)


def test_ci_sets_nothing_that_a_user_lacks() -> None:
    assert not re.search(r"export |^\w+=", (ROOT / ".ci" / "run").read_text(), re.M)


def test_make_test_runs_every_check() -> None:
    assert "scripts/check" in MAKEFILE
    checks = re.findall(r"^check (.+)$", (ROOT / "scripts" / "check").read_text(), re.M)
    assert checks == [
        "ruff format --check .",
        "ruff check .",
        "mypy",
        "lint-imports",
        'pytest -n logical --maxprocesses 4 "$@"',
    ]


def test_no_package_index_is_wired_in() -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "scripts/check", ".ci/run"):
        assert "index-url" not in (ROOT / name).read_text(), name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_make_target_and_engine_command_in_a_document_exists(path: Path) -> None:
    targets = re.findall(r"^([a-z]+):", MAKEFILE, re.M)
    commands = [module.NAME for module in COMMANDS]
    for line in shell_lines(path.read_text()):
        if match := re.match(r"make ([a-z]+)", line):
            assert match[1] in targets, line
        if match := re.match(r"engine ([a-z]+)", line):
            assert match[1] in commands, line


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_file_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("table", [engine_table(), server_table()], ids=["engine", "server"])
def test_the_settings_in_the_documentation_are_those_of_the_code(table: str) -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    assert table in text, f"docs/settings.md should hold:\n{table}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_python_in_a_document_can_be_parsed(path: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.S):
        ast.parse(block)
