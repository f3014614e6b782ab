"""A mixture of experts whose shapes do not depend on who chose whom."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from engine.platform import OpTable


def register(table: OpTable, source: str) -> None:
    table.register("mixture_of_experts", source=source, priority=10, unless=_refuses)(
        mixture_of_experts
    )


def _refuses(*, quantization: str | None = None, **_: object) -> str | None:
    return None if quantization is None else "it keeps weights as they are"


def mixture_of_experts(
    gate_up_EGW: Tensor, down_EWF: Tensor
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Every expert computes every token, and what a token did not choose has a share of 0. Each
    expert's matrices are weights of their own, which lie on chips as a projection's do."""
    experts = list(zip(gate_up_EGW.unbind(), down_EWF.unbind(), strict=True))

    def apply(x_TW: Tensor, share_TA: Tensor, ids_TA: Tensor) -> Tensor:
        result_TW: Tensor | None = None
        for number, (gate_up, down) in enumerate(experts):
            gate_TF, up_TF = functional.linear(x_TW, gate_up).chunk(2, dim=-1)
            outer_TW = functional.linear(functional.silu(gate_TF) * up_TF, down).float()
            chosen_T1 = (share_TA.float() * (ids_TA == number)).sum(-1, keepdim=True)
            # What is too large for the dtype becomes NaN by a share of 0.
            part_TW = torch.where(chosen_T1 > 0, outer_TW * chosen_T1, 0.0)
            result_TW = part_TW if result_TW is None else result_TW + part_TW
        assert result_TW is not None, "a mixture of no experts"
        return result_TW.to(x_TW.dtype)

    return apply
