"""What is told of torch and of devices from files alone."""

import sys

import pytest

from engine_triton.installed import counted, torch_build, visible

VERSION = """from typing import Optional
__all__ = ['__version__', 'cuda', 'hip']
__version__ = '2.13.0+x'
debug = False
one: Optional[str] = '12.8'
other: Optional[str] = None
"""
THREE = [("GPU-1a2b",), ("GPU-1a3c",), ()]


def make_torch(folder, text):
    package = folder / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('torch must not be imported')")
    (package / "version.py").write_text(text)
    return [str(folder)]


def test_torch_is_read_and_not_imported(tmp_path):
    found = torch_build(make_torch(tmp_path, VERSION))
    assert found == {"__version__": "2.13.0+x", "one": "12.8", "other": None}


def test_the_torch_of_this_process_says_what_its_file_says():
    import torch

    found = torch_build()
    assert found["__version__"] == str(torch.__version__)
    assert (found["cuda"], found["hip"]) == (torch.version.cuda, torch.version.hip)


def test_no_torch_is_none_and_a_broken_one_knows_nothing(tmp_path):
    assert torch_build([str(tmp_path)]) is None
    assert torch_build(make_torch(tmp_path, "not python(")) == {"__version__": None}
    assert "torch.version" not in sys.modules or sys.modules["torch"].__file__ is not None


@pytest.mark.parametrize(
    ("variable", "left"),
    [
        (None, (0, 1, 2)),
        ("", ()),
        ("-1", ()),
        ("2,0", (2, 0)),
        (" 1 , 2", (1, 2)),
        ("0,7,1", (0,)),  # the list ends at the first that is none
        ("1,1", (1,)),
        ("GPU-1a2b", (0,)),
        ("GPU-1a3", (1,)),  # the beginning of one name is enough
        ("GPU-1a", ()),  # of two it is not
        ("MIG-1a2b", ()),
    ],
)
def test_the_variable_leaves_what_the_runtime_would(variable, left):
    assert visible(variable, THREE) == left


def test_equal_names_are_counted():
    assert counted(["H200", "H200", "L4"]) == "2 x H200, L4"
    assert counted([]) == ""
