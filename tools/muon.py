"""Muon for a model's matrices: momentum whose update is made orthogonal.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), with the scale of
Liu et al., "Muon is Scalable for LLM Training" (arXiv 2502.16982, section 2.2). Torch has one of
its own that computes in bfloat16 and one matrix at a time; this one takes matrices of one shape
together and computes in float32, for processors where bfloat16 is slow.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

# The quintic of Jordan et al.: five rounds bring all singular values close to 1.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for parameters of two dimensions."""

    def __init__(
        self, matrices: Iterable[Tensor], lr: float, momentum: float, weight_decay: float
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update every matrix by its gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                by_shape.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in by_shape.items():
                update_NRC = orthogonalised(self._momenta(matrices, group["momentum"]))
                # As large as an update of Adam, so that one learning rate suits both.
                scale = 0.2 * max(shape) ** 0.5
                for matrix, update_RC in zip(matrices, update_NRC, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(update_RC, alpha=-group["lr"] * scale)

    def _momenta(self, matrices: list[Tensor], decay: float) -> Tensor:
        """The Nesterov momenta of N matrices of R rows and C columns, stacked: NRC."""
        looked_ahead = []
        for matrix in matrices:
            assert matrix.grad is not None
            momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
            momentum.lerp_(matrix.grad, 1 - decay)
            looked_ahead.append(matrix.grad.lerp(momentum, decay))
        return torch.stack(looked_ahead)


def orthogonalised(matrices_NRC: Tensor) -> Tensor:
    """Each matrix with its singular values brought near 1, by Newton-Schulz iteration."""
    a, b, c = _COEFFICIENTS
    tall = matrices_NRC.shape[1] > matrices_NRC.shape[2]
    x = matrices_NRC.mT if tall else matrices_NRC
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_NUM_ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
