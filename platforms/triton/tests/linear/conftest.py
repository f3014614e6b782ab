"""Memory that nobody wrote is NaN, or the largest integer: whoever reads it is found out."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def poisoned() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # which fills what `empty` gives
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
