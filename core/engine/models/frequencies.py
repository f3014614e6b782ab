"""Rotary frequencies of a model, with their scaling to longer contexts."""

import torch
from torch import Tensor

from engine.models.architecture import Architecture
from engine.models.configuration import Configuration


def rotary_frequencies(
    config: Configuration, architecture: Architecture, max_model_len: int
) -> tuple[Tensor, float]:
    """Radians a position [R/2] float32, and the factor of cosine and sine.

    Where scaling depends on a sequence's length (longrope, dynamic), `max_model_len` decides for
    all sequences: keys in the cache were rotated once, and must fit every later query. transformers
    decides anew for each call, so the two agree for sequences on the same side of the model's
    original length as `max_model_len`.
    """
    kind = config.rope_parameters["rope_type"]
    if kind != "default":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # takes seconds

        frequencies, scale = ROPE_INIT_FUNCTIONS[kind](
            config, device=torch.device("cpu"), seq_len=max_model_len
        )
        return frequencies, float(scale)
    part = config.rope_parameters.get("partial_rotary_factor", 1.0)
    dim = int(architecture.head_dim * part)
    exponent = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    return 1.0 / config.rope_parameters["rope_theta"] ** exponent, 1.0
