"""From a model's folder to a model that runs."""

import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from engine.errors import ModelError
from engine.layers import Rotary, Site
from engine.models.architecture import Architecture, Declaration, expressible, resolve
from engine.models.checkpoint import Checkpoint
from engine.models.configuration import Configuration, complete_configuration
from engine.models.declarations import DECLARATIONS
from engine.models.decoder import Decoder, DecoderLayer
from engine.models.frequencies import rotary_frequencies
from engine.models.load_request import LoadRequest
from engine.models.model import Model
from engine.models.scaling import Scaling
from engine.models.share import Share, share
from engine.models.weights import DecoderWeights
from engine.platform.attention import AttentionSpec
from engine.platform.comm import Communicator
from engine.platform.ops import OpTable


def load(request: LoadRequest, ops: OpTable, communicator: Communicator) -> Model:
    """See `engine.models.load`."""
    found = declared(request)
    if found is not None:
        site = Site(
            ops,
            communicator,
            getattr(torch, request.dtype),
            request.device,
            request.quantization,
        )
        declaration, config = found
        checkpoint = Checkpoint(Path(request.facts.path), _scaling(config))
        return build(request, declaration, config, checkpoint, site)
    architecture = request.facts.architecture
    if request.quantization is not None:
        raise ModelError(
            f"{architecture} runs through transformers' code, whose weights are not quantized; "
            f"load it without quantization={request.quantization!r}"
        )
    if communicator.size > 1:
        raise ModelError(
            f"{architecture} runs through transformers' code, which is not divided over devices; "
            f"give it one device instead of {communicator.size}"
        )
    from engine.models import fallback  # brings all of transformers' modelling: seconds

    return fallback.load(request)


def declared(request: LoadRequest) -> tuple[Declaration, Configuration] | None:
    """How the decoder runs the model, or None where it cannot express it.

    Raises:
        ModelError: config.json cannot be used.
    """
    folder, architecture = Path(request.facts.path), request.facts.architecture
    config = complete_configuration(
        folder, architecture, trust_remote_code=request.trust_remote_code
    )
    declaration = DECLARATIONS.get(architecture)
    if declaration is not None and expressible(declaration, config.to_dict()):
        return declaration, config
    if _scaling(config) is not None:
        raise ModelError(
            f"{architecture} runs through transformers' code, which reads no quantized weights"
            " here; give the model in float32, bfloat16 or float16"
        )
    return None


def _scaling(config: Configuration) -> Scaling | None:
    """How the model's weights in fp8 are scaled; None: it has none."""
    described = config.to_dict().get("quantization_config")
    return Scaling.of(described) if described else None


def build(
    request: LoadRequest,
    declaration: Declaration,
    config: Configuration,
    checkpoint: Checkpoint,
    site: Site,
) -> Decoder:
    """The decoder of a model that is `declared`, with this rank's weights from `checkpoint`."""
    model = resolve(declaration, config.to_dict())
    part = share(model, site.rank, site.size)
    weights = DecoderWeights(checkpoint, model, part, site)
    frequencies, scale = rotary_frequencies(config, model, request.max_model_len)
    rotary = Rotary(site, frequencies, scale, model.head_dim)
    layers = [
        DecoderLayer(site, model, weights.layer(number), number, rotary)
        for number in _with_progress(range(model.num_layers), request)
    ]
    return Decoder(weights, rotary, layers, _specs(request, model, part))


def _specs(request: LoadRequest, model: Architecture, part: Share) -> list[AttentionSpec]:
    return [
        AttentionSpec(
            num_heads=len(part.heads),
            num_kv_heads=len(part.kv_heads),
            head_dim=model.head_dim,
            block_size=request.block_size,
            dtype=request.dtype,
            kv_dtype=request.kv_dtype,
            scale=model.attention_scale,
            window=window,
        )
        for window in model.windows
    ]


def _with_progress(layers: range, request: LoadRequest) -> Iterable[int]:
    if not (request.show_progress and sys.stderr.isatty()):
        return layers
    from rich.console import Console
    from rich.progress import track

    label = f"loading {request.facts.name}"
    return track(layers, label, console=Console(stderr=True), transient=True)
