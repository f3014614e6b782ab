"""Operations of which the core's own could not be one program."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from engine.platform import OpTable


def register(table: OpTable) -> None:
    table.register("mixture_of_experts", source="neuron", priority=10, unless=_refuses)(
        mixture_of_experts
    )


def _refuses(*, quantization: str | None = None, **_: object) -> str | None:
    return None if quantization is None else "it keeps weights as they are"


def mixture_of_experts(
    gate_up_EGW: Tensor, down_EWF: Tensor
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Every expert computes every token, and what a token did not choose has a share of 0: the
    shapes do not depend on who chose whom. One expert after the other, so that the activations of
    one are held at once."""

    def apply(x_TW: Tensor, share_TA: Tensor, ids_TA: Tensor) -> Tensor:
        result_TW = torch.zeros_like(x_TW, dtype=torch.float32)
        for expert in range(gate_up_EGW.shape[0]):
            gate_TF, up_TF = functional.linear(x_TW, gate_up_EGW[expert]).chunk(2, dim=-1)
            outer_TW = functional.linear(functional.silu(gate_TF) * up_TF, down_EWF[expert])
            chosen_T1 = (share_TA * (ids_TA == expert)).sum(-1, keepdim=True)
            # What is too large for the dtype becomes NaN by a share of 0.
            part_TW = outer_TW.float() * chosen_T1.float()
            result_TW = result_TW + torch.where(chosen_T1 > 0, part_TW, 0)
        return result_TW.to(x_TW.dtype)

    return apply
