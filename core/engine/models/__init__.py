"""Models: what a folder holds, and how it is run.

`read_facts` reads the folder's description without torch; `outline` builds the model's layers
without its weights, and `load` with them. An architecture that `declarations` describes runs in the
one decoder; every other runs through transformers' own code, with the engine's paged attention in
place of its own.
"""

from typing import TYPE_CHECKING

from engine.config import EngineConfig
from engine.facts import ModelFacts
from engine.models.facts import read_facts

if TYPE_CHECKING:
    from engine.models.load_request import LoadRequest
    from engine.models.model import Model
    from engine.models.outlining import Outline
    from engine.platform.comm import Communicator
    from engine.platform.ops import OpTable

__all__ = ["load", "outline", "read_facts"]


def load(
    facts: ModelFacts,
    *,
    config: EngineConfig,
    dtype: str,
    kv_dtype: str,
    block_size: int,
    device: str,
    ops: "OpTable",
    communicator: "Communicator",
    show_progress: bool,
) -> "Model":
    """Build the model and load this rank's share of its weights, quantized as `config` asks.

    Args:
        dtype: of weights and activations, "float32", "bfloat16" or "float16".
        kv_dtype: of the KV cache; it only goes into the attention specs.
        block_size: tokens a KV block, likewise.
        device: as torch spells it.
        ops: filled by `engine.ops.fill` and the platform; asked while layers are built.
        show_progress: draw a progress bar, if stderr is a terminal.

    Raises:
        ModelError: the architecture or the weight files cannot be used; says what can.
    """
    from engine.models import loading  # imports torch

    request = _request(facts, config, dtype, kv_dtype, block_size, device, show_progress)
    return loading.load(request, ops, communicator)


def outline(
    facts: ModelFacts,
    *,
    config: EngineConfig,
    dtype: str,
    kv_dtype: str,
    block_size: int,
    device: str,
    ops: "OpTable",
    ranks: int = 1,
) -> "Outline | None":
    """Build the model's layers without its weights, and so without memory: as rank 0 of `ranks`.

    `ops` notes what it was asked, and answered. The other arguments are those of `load`.

    Returns None for a model that runs through transformers' code: it must be loaded to be known.

    Raises:
        ModelError: the architecture cannot be used, or not be divided by so many ranks.
    """
    from engine.models import outlining  # imports torch

    request = _request(facts, config, dtype, kv_dtype, block_size, device, False)
    return outlining.outline(request, ops, ranks)


def _request(
    facts: ModelFacts,
    config: EngineConfig,
    dtype: str,
    kv_dtype: str,
    block_size: int,
    device: str,
    show_progress: bool,
) -> "LoadRequest":
    from engine.models.load_request import LoadRequest

    return LoadRequest(
        facts=facts,
        dtype=dtype,
        kv_dtype=kv_dtype,
        quantization=config.quantization,
        block_size=block_size,
        device=device,
        max_model_len=config.max_model_len or facts.max_model_len,
        trust_remote_code=config.trust_remote_code,
        show_progress=show_progress,
    )
