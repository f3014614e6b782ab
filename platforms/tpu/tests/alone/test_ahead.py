"""Programs of steps as libtpu compiles them, for every kind of chip, on one and on four."""

import os

import pytest
from tpu_ahead import KINDS, LLAMA_8B, SMALL, Ahead

from engine.platform import Shape

DECODE, CHUNKS = Shape(8, 8, 4, True), Shape(64, 8, 4)
#: With these widths a program takes a minute to compile.
WIDE = os.environ.get("ENGINE_TPU_TESTS_WIDE") == "1"
EXCHANGES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def exchanged(compiled):
    text = compiled.as_text()
    counts = {name: text.count(f" {name}(") + text.count(f" {name}-start(") for name in EXCHANGES}
    return {name: count for name, count in counts.items() if count}


def check_step(ahead, shape, chips, layers):
    compiled = ahead.step(shape)
    memory, text = compiled.memory_analysis(), compiled.as_text()
    cache = sum(one.array.size * one.array.dtype.itemsize for one in ahead.caches)
    assert memory.alias_size_in_bytes == cache // chips, "the caches are not updated in place"
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    assert needed + memory.generated_code_size_in_bytes < 0.9 * ahead.hbm
    assert memory.temp_size_in_bytes < cache // chips // 4, "a copy of a cache"
    assert text.count('custom_call_target="tpu_custom_call"') >= 2 * layers, "no kernels"
    assert exchanged(compiled) == ({"all-reduce": 2 * layers + 1} if chips > 1 else {})


@pytest.mark.parametrize("chips", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_both_steps_compile_for_the_chip_and_update_their_caches_in_place(kind, chips, tmp_path):
    ahead = Ahead(tmp_path, SMALL, kind, chips)
    for shape in (DECODE, CHUNKS):
        check_step(ahead, shape, chips, SMALL["num_hidden_layers"])


def test_logits_are_gathered_once(tmp_path):
    compiled = Ahead(tmp_path, SMALL, "v6e", 4).projection(DECODE)
    assert exchanged(compiled) == {"all-gather": 1}


@pytest.mark.skipif(not WIDE, reason="takes many minutes; ENGINE_TPU_TESTS_WIDE=1 asks for it")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("shape", [Shape(64, 64, 16, True), Shape(512, 64, 16)], ids=str)
@pytest.mark.parametrize("chips", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_llama_8b_compile(kind, chips, shape, tmp_path):
    check_step(Ahead(tmp_path, LLAMA_8B, kind, chips), shape, chips, 2)
