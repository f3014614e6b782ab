"""What several tests of the platform share: folders of their own, and a stand-in for the bridge."""

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import gaudi_on_cpu
import pytest
import torch

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
    for folder in (bridge, bridge / "core", bridge / "hpex"):
        (folder / "__init__.py").write_text("")
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
