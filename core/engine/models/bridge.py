"""Between transformers' modelling code and the engine's attention.

transformers looks up attention and mask functions in registries, by a name that the model's
configuration holds. Two names are ours: `ATTENTION` to run, `PROBE` to find out what a model asks.
What a call needs, `engine_attend`, travels as an argument from the decoder to the function.

T tokens, H query heads, K key/value heads, D head dim, E the values' own head dim.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

ATTENTION = "engine"
PROBE = "engine_probe"

#: (attention module, q[T, H, D], k[T, K, D], v[T, K, E]) -> [T, H, E]
ModuleAttend: TypeAlias = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


def register() -> None:
    """Make our names known to transformers. Safe to call again."""
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, _no_mask)
    AttentionInterface.register(PROBE, _probed_attention)
    AttentionMaskInterface.register(PROBE, _marked_mask)


def run(decoder: nn.Module, input_ids: Tensor, positions: Tensor, attend: object) -> Any:
    """One flat sequence, [T] int64 each; transformers' output, with a leading 1 in its shapes."""
    return decoder(
        input_ids=input_ids.unsqueeze(0),
        position_ids=positions.unsqueeze(0),
        use_cache=False,
        engine_attend=attend,
    )


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    engine_attend: ModuleAttend,
    **_: object,
) -> tuple[Tensor, None]:
    """As transformers calls it: [1, H, T, D] in, [1, T, H, E] out."""
    q_THD, k_TKD, v_TKE = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    return engine_attend(module, q_THD, k_TKD, v_TKE).unsqueeze(0), None


def _no_mask(**_: object) -> None:
    """`attend` knows which tokens see which."""


def _probed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    engine_attend: Callable[..., Tensor],
    **asked: object,
) -> tuple[Tensor, None]:
    """Like `_attention`, but `engine_attend` gets everything that the model says."""
    q_THD, k_TKD, v_TKE = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    result = engine_attend(module, q_THD, k_TKD, v_TKE, attention_mask, asked)
    return result.unsqueeze(0), None


def _marked_mask(
    *,
    mask_function: Callable[..., Tensor],
    device: torch.device,
    local_size: int | None = None,
    **_: object,
) -> Tensor:
    """In a mask's place, one number: the window's tokens, 0 for all earlier tokens, or -1 for
    something else that is not causal attention. [1, 1, 1, 1] float32."""

    def sees(query: int, key: int) -> bool:
        here = (torch.tensor(index, device=device) for index in (0, 0, query, key))
        return bool(mask_function(*here))

    span = local_size or 1
    causal = sees(2 * span, 2 * span) and not sees(0, 1) and sees(2 * span, span + 1)
    ends = not sees(2 * span, span) if local_size else sees(10**6, 0)
    window = (local_size or 0) if causal and ends else -1
    return torch.full((1, 1, 1, 1), float(window), device=device)
