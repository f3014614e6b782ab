"""Tiny random models of transformers, saved to a folder, and loaded into the engine."""

from pathlib import Path

import torch
import transformers
from torch import Tensor

from engine import models, ops
from engine.config import EngineConfig
from engine.models.model import Model
from engine.platform import Communicator, OpTable, SoloCommunicator

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make(architecture: str, **settings: object) -> transformers.PreTrainedModel:
    """A model of that class with random weights, no bias or norm left at its trivial start."""
    model_class = getattr(transformers, architecture)
    torch.manual_seed(7)
    model = model_class(model_class.config_class(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.mul_(3.0 if "embed" not in name else 8.0)
    model.tie_weights()
    return model


def save(model: transformers.PreTrainedModel, folder: Path, **settings: object) -> Path:
    model.save_pretrained(folder, **settings)
    return folder


def load(
    folder: Path,
    *,
    dtype: str = "float32",
    communicator: Communicator | None = None,
    show_progress: bool = False,
    **settings: object,
) -> Model:
    table = OpTable()
    ops.fill(table)
    config = EngineConfig(model=str(folder), **settings)
    return models.load(
        models.read_facts(config),
        config=config,
        dtype=dtype,
        kv_dtype="float32",
        block_size=16,
        device="cpu",
        ops=table,
        communicator=communicator or SoloCommunicator(),
        show_progress=show_progress,
    )


def expected_logits(model: transformers.PreTrainedModel, tokens: list[int]) -> Tensor:
    """[tokens, V], in one call of transformers without a cache."""
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0].float()
