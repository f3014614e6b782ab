"""What several tests of the platform share: folders of their own, and a stand-in for the bridge."""

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import gaudi_on_cpu
import pytest
import torch

from engine_gaudi import kernels

HPEX = '''
"""Signatures and formulas as Intel documents them."""
import torch
from torch.nn import functional

calls = []


class FusedSDPA:
    @staticmethod
    def apply(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
              softmax_mode="None", recompute_mode=None, valid_seq_len=None,
              seq_padding_type="left"):
        calls.append("FusedSDPA")
        assert softmax_mode in ("None", "fast", "fp32") and seq_padding_type in ("left", "right")
        assert valid_seq_len is None or is_causal, "lengths are for causal masks only"
        assert q.dim() == k.dim() == v.dim() == attn_mask.dim() == 4
        return functional.scaled_dot_product_attention(
            q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=True
        )


class FusedRMSNorm:
    @staticmethod
    def apply(data_in, gamma, eps, use_stages=True, bwd_mode=0, fast_math=False):
        calls.append("FusedRMSNorm")
        assert data_in.dim() == 3, "the kernel takes three dimensions"
        return functional.rms_norm(data_in, gamma.shape, gamma, eps)


def apply_rotary_pos_emb(p, *args):
    calls.append("apply_rotary_pos_emb")
    cos, sin = args[:2]
    p = p.to(torch.promote_types(p.dtype, cos.dtype))
    half = p.shape[-1] // 2
    return p * cos + torch.cat((-p[..., half:], p[..., :half]), -1) * sin
'''


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The tensors are tiny: waiting for a second thread is all it would add."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs are kept in folders of the test's own, and the process' environment stays as it was.

    Set and deleted: so it is remembered that they were not there. Other processes find what the
    tests share, and the platform on the CPU as if it were installed.
    """
    about = tmp_path / "installed" / "gaudi_on_cpu-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: gaudi-on-cpu\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[engine.platforms]\ngaudi_on_cpu = gaudi_on_cpu\n")
    monkeypatch.syspath_prepend(about.parent)
    shared = str(Path(gaudi_on_cpu.__file__).parent)
    monkeypatch.setenv("PYTHONPATH", shared, prepend=os.pathsep)
    monkeypatch.setenv("ENGINE_PROGRAM_CACHE", str(tmp_path / "programs"))
    for name in ("PT_HPU_RECIPE_CACHE_CONFIG", "HLS_MODULE_ID", "HABANA_VISIBLE_MODULES"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def vendor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that can be found and imported as Intel's bridge; its folder `torch`."""
    site = tmp_path / "site"
    bridge = site / "habana_frameworks" / "torch"
    (bridge / "core").mkdir(parents=True)
    (bridge / "hpex" / "kernels").mkdir(parents=True)
    (bridge / "hpex" / "normalization").mkdir()
    (bridge / "distributed" / "hccl").mkdir(parents=True)
    for folder in (bridge, bridge / "core", bridge / "hpex", bridge / "distributed"):
        (folder / "__init__.py").write_text("")
    (bridge / "distributed" / "hccl" / "__init__.py").write_text(
        "import os\nmodule = os.environ.get('HLS_MODULE_ID')"
    )
    (bridge / "hpex" / "kernels" / "__init__.py").write_text(HPEX)
    (bridge / "hpex" / "normalization" / "__init__.py").write_text(
        "from habana_frameworks.torch.hpex.kernels import FusedRMSNorm"
    )
    (bridge / "required_version.txt").write_text(".".join(torch.__version__.split(".")[:2]) + ".0")
    about = site / "habana_torch_plugin-1.24.0.17.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: habana-torch-plugin\nVersion: 1.24.0.17\n"
    )
    monkeypatch.syspath_prepend(site)
    importlib.invalidate_caches()
    yield bridge
    for name in [name for name in sys.modules if name.split(".")[0] == "habana_frameworks"]:
        del sys.modules[name]


#: As the bridge declares them.
OPERATIONS = """
mixture_of_experts(Tensor hidden_states, Tensor expert_routing_table, Tensor router_weights,
 Tensor[] w12, Tensor[] w3, bool permuted_weights, str activation, int experts_min,
 int experts_max) -> Tensor
cast_to_fp8_v2(Tensor input, Tensor? scale=None, bool stochastic_rounding=False,
 bool is_amax=False, ScalarType? dtype=None, int[]? scale_shape=None) -> (Tensor, Tensor)
cast_from_fp8(Tensor input, Tensor? scale, ScalarType out_dtype, int[]? scale_shape=None) -> Tensor
fp8_gemm_v2(Tensor A, bool trans_A, Tensor B, bool trans_B, Tensor? D, ScalarType out_dtype,
 Tensor? A_scale_inv=None, Tensor? B_scale_inv=None, Tensor? bias=None, bool accumulate=False,
 int[]? B_scale_shape=None) -> Tensor
"""


@pytest.fixture
def operations() -> Iterator[list[str]]:
    """The bridge's operations, on the CPU; the names of those that were called."""
    library = torch.library.Library("hpu", "FRAGMENT")
    calls: list[str] = []
    for declared in OPERATIONS.replace("\n ", " ").strip().splitlines():
        name = declared.partition("(")[0]
        library.define(declared)
        library.impl(name, _noting(calls, name), "CPU")
    yield calls
    library._destroy()


def _noting(calls, name):
    def call(*given, **named):
        calls.append(name)
        return globals()[f"_{name}"](*given, **named)

    return call


def _mixture_of_experts(x, table, weights, w12, w3, permuted, activation, first, last):
    assert (permuted, activation, first, last) == (True, "silu", 0, len(w12) - 1)
    assert weights.dtype == x.dtype
    return kernels.torch_experts(x, weights, table, w12, w3)


def _cast_to_fp8_v2(x, scale, stochastic, is_amax, dtype, shape=None):
    assert (scale, stochastic, is_amax, dtype) == (None, False, False, torch.float8_e4m3fn)
    assert x.dtype in (torch.bfloat16, torch.float32), "it takes no other dtypes"
    return x.to(dtype), torch.empty(0)


def _cast_from_fp8(x, scale, out_dtype, shape=None):
    assert scale is None
    return _second_generation(x).to(out_dtype)


def _fp8_gemm_v2(
    a, trans_a, b, trans_b, d, dtype, a_scale, b_scale, bias=None, accumulate=False, shape=None
):
    assert (trans_a, trans_b, d, accumulate) == (False, True, None, False)
    assert dtype in (torch.bfloat16, torch.float32), "it gives no other dtypes"
    assert a_scale.shape == (len(a), 1), "a scale a row, as a column"
    assert b_scale.shape == (len(b),), "a scale a column, as a row"
    assert (a_scale.dtype, b_scale.dtype) == (torch.float32, torch.float32)
    product = _second_generation(a) @ _second_generation(b).T * a_scale * b_scale
    return (product if bias is None else product + bias.float()).to(dtype)


def _second_generation(x):
    """As its numbers are read: nothing beyond 240 is one."""
    x = x.float()
    return torch.where(x.abs() > 240, float("nan"), x)
