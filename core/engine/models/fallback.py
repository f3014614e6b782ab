"""Any causal language model of transformers, through its own modelling code.

Its attention calls go through transformers' attention interface, where a function of ours hands
them to the step's `attend`. Everything else of the model sees one flat sequence of T tokens with
explicit positions: no cache, no mask. What that cannot serve is found out once, at loading
(`engine.models.probe`), and refused.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from engine.errors import ModelError
from engine.models import bridge
from engine.models.load_request import LoadRequest
from engine.models.model import Attend, Model
from engine.models.probe import (
    Findings,
    probe,
    require_same_logits,
    require_separate_tokens,
    unsupported,
)
from engine.platform.attention import AttentionSpec


class Fallback(Model):
    """
    Args:
        causal: the whole model, with its output layer.
        decoder: the part of it that ends with the final norm.
        findings: what the decoder asks of attention.
    """

    def __init__(self, causal: PreTrainedModel, decoder: nn.Module, findings: Findings) -> None:
        self.num_bytes: int = causal.get_memory_footprint()  # type: ignore[no-untyped-call]
        self._decoder = decoder
        self._specs = [call.spec for call in findings.calls]
        self._numbers = {call.module: number for number, call in enumerate(findings.calls)}
        path = next(name for name, module in causal.named_modules() if module is decoder)
        self._tail = _with_replaced(causal, path, _Given(findings.output))

    def attention_specs(self) -> list[AttentionSpec]:
        return list(self._specs)

    def forward(self, input_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        def attend_of(module: nn.Module, q_THD: Tensor, k_TKD: Tensor, v_TKE: Tensor) -> Tensor:
            width = v_TKE.shape[-1]  # of values, which some models have narrower than keys
            v_TKD = functional.pad(v_TKE, (0, k_TKD.shape[-1] - width))
            return attend(self._numbers[module], q_THD, k_TKD, v_TKD)[..., :width]

        output = bridge.run(self._decoder, input_ids, positions, attend_of)
        hidden: Tensor = output.last_hidden_state.squeeze(0)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._tail(inputs_embeds=hidden.unsqueeze(0), use_cache=False).logits
        return logits.squeeze(0).float()


def load(request: LoadRequest) -> Fallback:
    """Load the model and try it.

    Raises:
        ModelError: transformers cannot load it, weights are missing, or the model does something
            that a paged cache and a flat batch cannot serve.
    """
    bridge.register()
    causal = _load_weights(request)
    decoder = causal.get_decoder()  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        findings = probe(causal, decoder, request)
        causal.set_attn_implementation(bridge.ATTENTION)
        model = Fallback(causal, decoder, findings)
        require_separate_tokens(model, request)
        require_same_logits(model, causal, request)
    return model


def _load_weights(request: LoadRequest) -> PreTrainedModel:
    try:
        with _progress(request.show_progress):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                Path(request.facts.path),
                dtype=getattr(torch, request.dtype),
                attn_implementation=bridge.PROBE,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=request.trust_remote_code,
                output_loading_info=True,
            )
    except KeyError as error:
        if bridge.PROBE not in error.args:
            raise
        raise unsupported(
            request, "its attention does not use transformers' attention interface"
        ) from error
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise ModelError(
            f"transformers cannot load {request.facts.architecture} from {request.facts.path}: "
            f"{error}"
        ) from error
    causal, report = loaded  # `output_loading_info` makes it a pair
    if absent := sorted([*report["missing_keys"], *map(str, report["mismatched_keys"])]):
        raise ModelError(
            f"{request.facts.path} lacks {len(absent)} weights of {request.facts.architecture}, or "
            f"has them in another shape ({', '.join(absent[:3])}); the files may be incomplete"
        )
    model: PreTrainedModel = causal.to(request.device).eval().requires_grad_(False)
    return model


@contextmanager
def _progress(wanted: bool) -> Iterator[None]:
    """transformers draws its bar by a switch of the whole process: put it back afterwards."""
    before = transformers_logging.is_progress_bar_enabled()
    if not wanted:
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if before:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


class _Given(nn.Module):
    """Stands where the decoder was, and answers with the hidden states it is given."""

    def __init__(self, output: type[Any]) -> None:
        super().__init__()
        self._output = output

    def forward(self, *args: object, **kwargs: object) -> Any:
        given = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        return self._output(last_hidden_state=next(x for x in given if x.is_floating_point()))


def _with_replaced(root: nn.Module, path: str, replacement: nn.Module) -> nn.Module:
    """A copy of `root` that shares all its weights, with another module at `path`."""
    name, _, rest = path.partition(".")
    child = root.get_submodule(name)
    twin = copy.copy(root)
    twin._modules = dict(root._modules)
    twin._modules[name] = _with_replaced(child, rest, replacement) if rest else replacement
    return twin
