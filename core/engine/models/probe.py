"""Finding out, by running a token or two, what a model of transformers asks of attention.

A model's configuration tells this in many dialects; the calls it makes tell it exactly.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.errors import ModelError
from engine.models import bridge
from engine.models.load_request import LoadRequest
from engine.models.model import Attend, Model
from engine.platform.attention import AttentionSpec

#: Arguments of an attention call that do not change what it computes.
_HARMLESS = ("position_ids", "cache_position", "position_embeddings", "dropout", "use_cache")
_KNOWN = ("scaling", "sliding_window", "softcap", "is_causal")


@dataclass(frozen=True, slots=True, eq=False)
class AttentionCall:
    module: nn.Module
    spec: AttentionSpec


@dataclass(frozen=True, slots=True)
class Findings:
    calls: list[AttentionCall]  # in the order the model makes them
    output: type[Any]  # that the decoder answers with


def probe(causal: PreTrainedModel, decoder: nn.Module, request: LoadRequest) -> Findings:
    """Run one token, and note every attention call.

    Raises:
        ModelError: the model is of a kind, or makes a call, that cannot be served.
    """
    if reason := _unsuitable(causal, decoder):
        raise unsupported(request, reason)
    calls: list[AttentionCall] = []

    def attend(
        module: nn.Module,
        q_THD: Tensor,
        k_TKD: Tensor,
        v_TKE: Tensor,
        mask: Tensor | None,
        asked: Mapping[str, object],
    ) -> Tensor:
        if any(call.module is module for call in calls):
            raise unsupported(request, "one of its layers attends more than once")
        if reason := _unanswerable(mask, asked) or _misshapen(q_THD, k_TKD, v_TKE):
            raise unsupported(request, f"its attention {reason}")
        window = int(mask.item()) if mask is not None else 0
        calls.append(AttentionCall(module, _spec(q_THD, k_TKD, window, asked, request)))
        return own_values(q_THD, v_TKE)

    zero = torch.zeros(1, dtype=torch.int64, device=request.device)
    try:
        output = bridge.run(decoder, zero, zero, attend)
    except (TypeError, ValueError, KeyError, AttributeError, NotImplementedError) as error:
        raise unsupported(
            request, f"its code does not hand our arguments on to its attention ({error})"
        ) from error
    if not calls:
        raise unsupported(request, "its attention does not use transformers' attention interface")
    return Findings(calls, type(output))


def require_separate_tokens(model: Model, request: LoadRequest) -> None:
    """Two first tokens of two requests, side by side, must come out as each does alone.

    Raises:
        ModelError: something beside attention looks at other tokens: a convolution, a recurrence.
    """

    def hidden(*tokens: int) -> Tensor:
        ids = torch.tensor(tokens, device=request.device)
        return model.forward(ids, torch.zeros_like(ids), _attend_to_itself).float()

    last = request.facts.vocab_size - 1
    if _differ(hidden(last, 0), torch.cat((hidden(last), hidden(0)))):
        raise unsupported(
            request, "it mixes neighbouring tokens outside attention (a recurrent layer, perhaps)"
        )


def require_same_logits(model: Model, causal: PreTrainedModel, request: LoadRequest) -> None:
    """Decoder and output layer apart must give what the whole model gives.

    Raises:
        ModelError: the model does more between the two than its output layer's part.
    """

    def attend(module: nn.Module, q_THD: Tensor, k_TKD: Tensor, v_TKE: Tensor) -> Tensor:
        return own_values(q_THD, v_TKE)

    zero = torch.zeros(1, dtype=torch.int64, device=request.device)
    try:
        apart = model.logits(model.forward(zero, zero, _attend_to_itself))
        whole = bridge.run(causal, zero, zero, attend).logits.squeeze(0).float()
    except (TypeError, ValueError, KeyError, AttributeError, StopIteration) as error:
        raise unsupported(
            request, f"its output layer cannot be run apart from its decoder ({error})"
        ) from error
    if apart.shape != whole.shape or _differ(apart, whole):
        raise unsupported(request, "its output layer apart from its decoder gives other logits")


class _ToItself(Attend):
    """Each token sees only itself; before anything is fused."""

    def __call__(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        return own_values(q_THD, v_TKD)


_attend_to_itself = _ToItself()


def _differ(one: Tensor, other: Tensor) -> bool:
    """By more than rounding in a half-precision dtype explains."""
    return bool((one - other).norm() > 0.05 * other.norm())


def own_values(q_THD: Tensor, v_TKE: Tensor) -> Tensor:
    """The attention of tokens that see nothing but themselves."""
    return v_TKE.repeat_interleave(q_THD.shape[1] // v_TKE.shape[1], dim=1)


def unsupported(request: LoadRequest, reason: str) -> ModelError:
    from engine.models.declarations import DECLARATIONS

    return ModelError(
        f"{request.facts.architecture} cannot be served: {reason}. What can be: "
        f"{', '.join(sorted(DECLARATIONS))}, and every decoder-only language model of transformers "
        "whose attention is causal, windowed or not, and goes through its attention interface"
    )


def _unsuitable(causal: PreTrainedModel, decoder: nn.Module) -> str | None:
    config = causal.config.get_text_config()
    if causal.config.is_encoder_decoder:
        return "it is an encoder with a decoder"
    if causal._is_stateful:
        return "it keeps a recurrent state instead of keys and values"
    if decoder is causal:
        return "its decoder cannot be told from its output layer"
    if "position_ids" not in inspect.signature(decoder.forward).parameters:
        return "it takes no explicit positions"
    kinds = set(config.to_dict().get("layer_types") or ())
    if strange := sorted(kinds - {"full_attention", "sliding_attention"}):
        return f"it has layers of the kind {', '.join(strange)}"
    return None


def _unanswerable(mask: Tensor | None, asked: Mapping[str, object]) -> str | None:
    """Why no attention spec says what a call asks for."""
    if mask is None or mask.shape != (1, 1, 1, 1) or mask.item() < 0:
        return "is not causal, or uses a mask of its own"
    if asked.get("is_causal") is False:
        return "is not causal"
    for name, value in asked.items():
        if name not in (*_HARMLESS, *_KNOWN) and isinstance(value, Tensor):
            return f"asks for {name!r}"
    return None


def _misshapen(q_THD: Tensor, k_TKD: Tensor, v_TKE: Tensor) -> str | None:
    if q_THD.shape[0] != 1 or k_TKD.shape[0] != 1:
        return "adds tokens to the sequence"
    if q_THD.shape[-1] != k_TKD.shape[-1] or v_TKE.shape[-1] > k_TKD.shape[-1]:
        return "has values wider than its keys"
    return None


def _spec(
    q_THD: Tensor,
    k_TKD: Tensor,
    window: int,
    asked: Mapping[str, Any],
    request: LoadRequest,
) -> AttentionSpec:
    scale, soft_cap = asked.get("scaling"), asked.get("softcap")
    return AttentionSpec(
        num_heads=q_THD.shape[1],
        num_kv_heads=k_TKD.shape[1],
        head_dim=q_THD.shape[2],
        block_size=request.block_size,
        dtype=request.dtype,
        kv_dtype=request.kv_dtype,
        scale=q_THD.shape[2] ** -0.5 if scale is None else float(scale),
        window=window or None,
        soft_cap=None if soft_cap is None else float(soft_cap),
    )
