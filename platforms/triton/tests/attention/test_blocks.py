import pytest
import torch

from engine_triton.architecture import Architecture
from engine_triton.attention.blocks import BlockCopy, pairs_on

HOST = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("shape", [(2, 3, 16, 64), (2, 1, 1, 17), (2, 1, 1, 3)])
def test_blocks_are_copied_and_no_others_change(
    architecture: Architecture, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    cache = torch.randint(0, 256, (7, *shape)).to(dtype)
    before = cache.clone()
    BlockCopy(architecture)(cache, cache, pairs_on(HOST, [(0, 5), (3, 1), (0, 2)]))
    assert torch.equal(cache, before[[0, 3, 0, 3, 4, 0, 6]])


def test_blocks_are_copied_from_one_cache_to_another(architecture: Architecture) -> None:
    device, host = torch.rand(4, 2, 2, 16, 8), torch.rand(6, 2, 2, 16, 8)
    before = host.clone()
    BlockCopy(architecture)(device, host, pairs_on(HOST, [(3, 0), (1, 5)]))
    assert torch.equal(host[[0, 5]], device[[3, 1]])
    assert torch.equal(host[1:5], before[1:5])


def test_no_pairs_are_nothing_to_do(architecture: Architecture) -> None:
    cache = torch.rand(2, 2, 1, 4, 8)
    before = cache.clone()
    BlockCopy(architecture)(cache, cache, pairs_on(HOST, []))
    assert torch.equal(cache, before)
