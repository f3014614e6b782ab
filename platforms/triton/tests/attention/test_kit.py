"""Some of the conformance kit's cases of attention, against the backend alone.

`engine certify` runs all of them on a device; in the interpreter they take a quarter of an hour.
"""

from types import SimpleNamespace

import pytest

from engine.platform import AttentionBackend, AttentionSpec, Capabilities
from engine.testing.checks.attention import CASES
from engine.testing.checks.case import Status, run
from engine_triton.architecture import Architecture
from engine_triton.attention.backend import PagedAttention
from engine_triton.attention.layout import KV_DTYPES

CHOSEN = (
    "bfloat16/chunks-together",
    "bfloat16/kv-fp8_e4m3-chunks",
    "bfloat16/window-and-soft-cap",
    "float16/prologue-norm-and-rotary",
    "float16/shared-prefix-within-a-step",
    "float32/copy-on-write",
)


class Attending:
    """As much of a platform as the cases use."""

    device = "cpu"
    capabilities = Capabilities(
        dtypes=("float32", "bfloat16", "float16"),
        kv_dtypes=KV_DTYPES,
        block_sizes=(16, 4),
        mixed_batches=True,
        chunked_prefill=True,
        prefix_reuse=True,
    )

    def __init__(self, architecture: Architecture) -> None:
        self._architecture = architecture

    def attention(self, spec: AttentionSpec) -> AttentionBackend:
        assert PagedAttention.unsupported(spec) is None
        return PagedAttention(spec, self.device, self._architecture)

    def synchronize(self) -> None: ...


@pytest.mark.parametrize("name", CHOSEN)
def test_a_case_of_the_kit(architecture: Architecture, name: str) -> None:
    platform = Attending(architecture)
    subject = SimpleNamespace(platform=platform, capabilities=platform.capabilities, narrow=False)
    [case] = [one for one in CASES if one.id == f"attention/{name}"]
    result = run(case, subject)
    assert result.status is Status.PASSED, result.reason
