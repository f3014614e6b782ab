import tomllib

import pytest

from engine.errors import UnsupportedError
from engine_triton import architecture as module
from engine_triton.architecture import TABLES, Architecture, known

CHIPS = [name for name in known() if name != "interpreter"]


@pytest.mark.parametrize("name", known())
def test_a_table_has_all_facts_and_its_kernels_end_with_an_entry_for_every_call(name) -> None:
    found = Architecture.named(name)
    assert (found.name, found.chip, found.note) == (name, name, None)
    assert found.shared_memory >= 65536
    for kernel, entries in found.kernels.items():
        conditions = [set(entry) & {"at_most", "at_least", "is"} for entry in entries]
        assert not conditions[-1], kernel
        assert all(conditions[:-1]), f"{kernel}: an entry after one that fits always is never used"


@pytest.mark.parametrize("name", known())
def test_every_chip_has_parameters_for_every_kernel_of_the_others(name) -> None:
    assert set(Architecture.named(name).kernels) == set(Architecture.named("sm_80").kernels)


@pytest.mark.parametrize("name", CHIPS)
def test_blocks_are_named_alike_on_every_chip(name) -> None:
    """A kernel has one set of constants, whatever their values."""
    for kernel, entries in Architecture.named(name).kernels.items():
        names = {frozenset(entry.get("blocks", {})) for entry in entries}
        names |= {
            frozenset(entry.get("blocks", {}))
            for entry in Architecture.named("sm_80").kernels[kernel]
        }
        assert len(names) == 1, kernel


def test_waves_are_told_apart_from_warps() -> None:
    sizes = {name: Architecture.named(name).warp_size for name in CHIPS}
    assert {name for name, lanes in sizes.items() if lanes == 64} == {"gfx90a", "gfx942", "gfx950"}


def test_formats_of_fp8_are_told_apart() -> None:
    formats = {name: Architecture.named(name).fp8 for name in CHIPS}
    assert formats["gfx942"] == "e4m3fnuz"
    assert formats["gfx950"] == formats["sm_90"] == formats["sm_100"] == "e4m3"
    assert formats["sm_80"] is formats["gfx90a"] is formats["gfx1100"] is None


@pytest.mark.parametrize(
    ("chip", "family", "shared_memory"),
    [
        ("sm_86", "sm_80", 101376),
        ("sm_89", "sm_80", 101376),
        ("sm_103", "sm_100", 232448),
        ("sm_121", "sm_80", 101376),  # as its next older one
        ("sm_95", "sm_90", 232448),
        ("gfx1201", "gfx1100", 65536),
    ],
)
def test_a_chip_without_a_table_has_its_familys_and_says_so(chip, family, shared_memory) -> None:
    found = Architecture.named(chip)
    assert (found.name, found.chip, found.shared_memory) == (family, chip, shared_memory)
    assert found.note == f"{chip} has no launch parameters of its own: those of {family} are used"


@pytest.mark.parametrize("chip", ["sm_75", "gfx803", "something"])
def test_a_chip_that_is_too_old_or_unknown_is_refused(chip) -> None:
    with pytest.raises(UnsupportedError, match=f"no launch parameters for {chip}.*'gfx90a'"):
        Architecture.named(chip)


def test_here_kernels_are_interpreted() -> None:
    assert Architecture.current().interpreted


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """Writes tables of a test's own."""
    monkeypatch.setattr(module, "TABLES", tmp_path)
    caches = [module._read, module._merged]
    for one in caches:
        one.cache_clear()

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.toml").write_text(text)

    yield write
    for one in caches:
        one.cache_clear()


FACTS = """
[facts]
backend = "some"
warp_size = 32
shared_memory = 1000
processors = 3
"""

KERNEL = """
[[kernels.sum]]
at_most = { width = 64, shared_memory = 2000 }
is = { dtype = ["bfloat16", "float16"] }
blocks = { BLOCK = 16 }
options = { num_warps = 2 }
tuned = "by hand"

[[kernels.sum]]
at_least = { width = 65 }
blocks = { BLOCK = 64 }

[[kernels.sum]]
blocks = { BLOCK = 32 }
"""


def test_the_first_entry_that_fits_is_taken(tables) -> None:
    tables("one", FACTS + KERNEL)
    launch = Architecture.named("one").launch
    first = launch("sum", width=64, dtype="float16")
    assert (first.blocks, first.options) == ({"BLOCK": 16}, {"num_warps": 2})
    assert first.tuned == "by hand"
    assert launch("sum", width=65, dtype="float16").blocks == {"BLOCK": 64}
    other = launch("sum", width=64, dtype="float32")
    assert (other.blocks, other.options, other.tuned) == ({"BLOCK": 32}, {}, None)


def test_a_table_takes_over_what_it_does_not_say_itself(tables) -> None:
    tables("one", FACTS + KERNEL)
    tables("two", 'like = "one"\n[facts]\nshared_memory = 3000\n')
    tables("three", 'like = "two"\n[[kernels.sum]]\nblocks = { BLOCK = 8 }\n')
    two, three = Architecture.named("two"), Architecture.named("three")
    assert two.launch("sum", width=64, dtype="float16").blocks == {"BLOCK": 32}  # 3000 > 2000
    assert three.launch("sum").blocks == {"BLOCK": 8}
    assert (three.shared_memory, three.processors) == (3000, 3)


def test_a_kernel_without_parameters_is_a_mistake_that_names_it(tables) -> None:
    tables("one", FACTS + KERNEL)
    with pytest.raises(LookupError, match="table of one has no entry for kernel 'product'"):
        Architecture.named("one").launch("product")


def test_a_misspelled_key_is_refused(tables) -> None:
    tables("one", FACTS + "[[kernels.sum]]\nblock = { BLOCK = 1 }\n")
    with pytest.raises(ValueError, match=r"one.toml, sum: unknown \['block'\]"):
        Architecture.named("one")


def test_tables_that_say_tuned_say_with_which_command() -> None:
    for path in TABLES.glob("*.toml"):
        for entries in tomllib.loads(path.read_text()).get("kernels", {}).values():
            for entry in entries:
                assert "gpu_tune.py" in entry.get("tuned", "gpu_tune.py"), path.name
