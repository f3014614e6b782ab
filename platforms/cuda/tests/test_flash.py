"""FlashAttention-3 as a backend. Its function is stood in for by stand_in/flash_attn_interface.py;
the cache, its writes and copies are the Triton kernels' own, interpreted."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from paged_steps import TOLERANCES, PagedStep, spec_of
from triton_on_cpu import spec

from engine.config import EngineConfig
from engine.errors import UnsupportedError
from engine.explain.parts import _attention
from engine.platform import AttentionSpec, Capabilities, Packed, Prologue
from engine.testing.checks.attention import CASES
from engine.testing.checks.case import Status, run
from engine_cuda import flash, flash_installed, words
from engine_cuda.flash import FlashAttention3
from engine_cuda.platform import attention_backends
from engine_triton.architecture import Architecture
from engine_triton.attention.backend import PagedAttention

STAND_IN = Path(__file__).parent / "stand_in"
HOPPER = Architecture.named("sm_90")
ASKED = EngineConfig(device="cuda:0,attention=flash3")
LLAMA = AttentionSpec(
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    block_size=16,
    dtype="bfloat16",
    kv_dtype="bfloat16",
    scale=128**-0.5,
)
#: Of the conformance kit.
CHOSEN = (
    "bfloat16/chunks-together",
    "bfloat16/window-and-soft-cap",
    "bfloat16/heads-7-over-1",
    "bfloat16/poisoned",
    "float16/mixed",
    "float16/shared-prefix-within-a-step",
    "float16/copy-on-write",
)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """No test finds the module that another one imported."""
    yield
    sys.modules.pop(flash_installed.MODULE, None)


@pytest.fixture
def installed(monkeypatch):
    """As if the package were: whoever imports it gets the stand-in."""
    monkeypatch.syspath_prepend(str(STAND_IN))


@pytest.fixture
def hopper(monkeypatch):
    """As if the host were such a GPU, as far as backends are chosen by it."""
    monkeypatch.setattr(flash, "FAMILY", "interpreter")


def opened(config=ASKED):
    return spec("cuda_on_cpu").create(config, 0)


@pytest.mark.parametrize("name", CHOSEN)
def test_a_case_of_the_kit(installed, name):
    platform = SimpleNamespace(
        device="cpu",
        capabilities=Capabilities(
            dtypes=("bfloat16", "float16"),
            kv_dtypes=("bfloat16", "float16"),
            block_sizes=(16, 32),
            mixed_batches=True,
            chunked_prefill=True,
            prefix_reuse=True,
        ),
        attention=lambda asked: FlashAttention3(asked, "cpu"),
        synchronize=lambda: None,
    )
    subject = SimpleNamespace(platform=platform, capabilities=platform.capabilities, narrow=False)
    [case] = [one for one in CASES if one.id == f"attention/{name}"]
    result = run(case, subject)
    assert result.status is Status.PASSED, result.reason


@pytest.mark.parametrize("sizes", [((40, 1), (7, 1)), ((40, 1), (50, 20), (18, 18))])
def test_a_packed_step_is_attended(installed, sizes):
    """Its keys and values are stored by the prologue's kernel, here with angles of zero."""
    step = PagedStep(spec_of(dtype="bfloat16"), Architecture.current(), sizes)
    given, qkv_TX = packed_of(step)
    backend, what = FlashAttention3(step.spec, "cpu"), Prologue(rotary_dim=32)
    assert backend.fuses(what)
    tokens = len(qkv_TX)
    packed = Packed(qkv_TX, torch.ones(tokens, 16), torch.zeros(tokens, 16))
    out, _ = backend.forward_packed(packed, what, step.cache, backend.plan(given))
    assert step.error(out) < TOLERANCES["bfloat16"]


def test_the_platform_makes_it_where_it_is_asked_for(installed, hopper):
    platform = opened()
    assert type(platform.attention(LLAMA)) is FlashAttention3
    part = _attention(platform, LLAMA, 1)
    assert part.chosen == "FlashAttention3 (engine_cuda.flash)"
    assert [(one.name, one.why) for one in part.refused] == [("PagedAttention", "lower priority")]
    platform.close()


def test_what_it_does_not_serve_the_own_kernels_do_and_the_reason_is_shown(installed, hopper):
    platform = opened()
    narrow = replace(LLAMA, kv_dtype="fp8_e4m3")
    assert type(platform.attention(narrow)) is PagedAttention
    [refused] = _attention(platform, narrow, 1).refused
    assert refused.name == "FlashAttention3"
    assert "the cache must be bfloat16 as the queries are, not fp8_e4m3" in refused.why
    platform.close()


def test_unasked_the_own_kernels_go_first(installed, hopper):
    platform = opened(EngineConfig(device="cuda"))
    assert type(platform.attention(LLAMA)) is PagedAttention
    [refused] = _attention(platform, LLAMA, 1).refused
    assert (refused.name, refused.why) == ("FlashAttention3", "lower priority")
    platform.close()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"dtype": "float32", "kv_dtype": "float32"}, "not one of bfloat16, float16"),
        ({"head_dim": 100}, "a multiple of 8 up to 256, got 100"),
        ({"head_dim": 264}, "a multiple of 8 up to 256, got 264"),
        ({"block_size": 64}, "at most 32, got 64"),
        ({"num_heads": 30}, "evenly"),
    ],
)
def test_what_the_library_has_no_kernel_for_is_refused(changes, why):
    assert why in FlashAttention3.unsupported(replace(LLAMA, **changes))
    assert FlashAttention3.unsupported(LLAMA) is None


def test_without_the_package_the_word_is_refused_with_the_command_that_installs_it():
    why = words.refuses(("attention=flash3",))
    assert why == f"FlashAttention-3 is not installed; {flash_installed.INSTALL}"
    _, refused = attention_backends("triton", HOPPER)
    assert refused.__qualname__ == refused.__name__ == "FlashAttention3"
    assert refused.unsupported(LLAMA) == why


def test_on_another_gpu_it_is_refused_by_the_chip(installed):
    with pytest.raises(UnsupportedError, match=r"sm_90 \(Hopper\), and this GPU is sm_100; leave"):
        attention_backends("flash3", Architecture.named("sm_100"))
    _, refused = attention_backends("triton", Architecture.named("sm_80"))
    assert "this GPU is sm_80" in refused.unsupported(LLAMA)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (
            "def flash_attn_with_kvcache(q, k_cache, v_cache, cache_seqlens=None): ...",
            r"too old: its flash_attn_with_kvcache has no page_table, cu_seqlens_q",
        ),
        ("raise ImportError('undefined symbol: _ZN2at4_ops')", "does not load: undefined symbol"),
        ("def flash_attn_func(q, k, v): ...", "does not load: 'flash_attn_with_kvcache'"),
    ],
)
def test_a_package_of_another_version_is_refused_by_it(monkeypatch, tmp_path, hopper, source, why):
    folder(tmp_path, source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UnsupportedError, match=rf"FlashAttention-3 3\.0\.0b1 is .*{why}"):
        opened()


def test_what_is_offered_is_told_from_files_alone(tmp_path):
    assert flash_installed.note([str(tmp_path)]) == "attention=flash3: not installed"
    folder(tmp_path, "raise AssertionError('must not be imported')")
    assert flash_installed.note([str(tmp_path)]) == "attention=flash3: FlashAttention-3 3.0.0b1"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (("fast",), "there is no word 'fast'; the words are attention=triton and attention=flash3"),
        (("flash3",), "there is no word 'flash3'"),
        (("attention=flash2",), "there is no word 'attention=flash2'"),
        (("attention=triton", "attention=flash3"), "contradict each other"),
    ],
)
def test_other_words_are_refused_with_those_there_are(given, why):
    assert why in words.refuses(given)


def test_the_own_kernels_may_be_named():
    assert words.refuses(()) is None
    assert words.refuses(("attention=triton",)) is None


def packed_of(step):
    """The step's metadata with its slots; its queries, keys and values side by side. What is to be
    stored is NaN in the cache until then."""
    size, slots, rows = step.spec.block_size, [], []
    for one in step.requests:
        tokens = range(one.length - one.rows, one.length)
        slots += [one.blocks[token // size] * size + token % size for token in tokens]
        rows.append(torch.cat((one.k_LKD[tokens], one.v_LKD[tokens]), dim=1))
    for slot in slots:
        step.cache[slot // size, :, :, slot % size] = float("nan")
    kv_TKD = torch.cat(rows).to(step.q_THD.dtype)
    qkv_TX = torch.cat((step.q_THD, kv_TKD), dim=1).flatten(1)
    return replace(step.metadata, slots=torch.tensor(slots)), qkv_TX


def folder(site, source):
    """A folder of packages with such a module, of version 3.0.0b1."""
    (site / f"{flash_installed.MODULE}.py").write_text(source)
    info = site / "flash_attn_3-3.0.0b1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flash_attn_3\nVersion: 3.0.0b1\n")
