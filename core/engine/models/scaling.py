"""What a configuration says of weights that are kept in eight bits of floating point.

transformers' `quantization_config` describes them by methods "fp8" and "compressed-tensors".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import ModelError


@dataclass(frozen=True, slots=True)
class Scaling:
    """`block`: rows and columns that share a scale; None: those of a row at least."""

    block: tuple[int, int] | None = None

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> "Scaling":
        """What a `quantization_config` says.

        Raises:
            ModelError: it describes other weights than these; says which can be used.
        """
        method = described.get("quant_method")
        if method == "fp8":
            return cls(_sizes(described.get("weight_block_size")))
        if method == "compressed-tensors":
            groups = _mapping(described, "config_groups")
            weights = [_mapping(one, "weights") for one in groups.values()]
            blocks = {_sizes(one.get("block_structure")) for one in weights}
            kinds = {(one.get("type"), one.get("num_bits")) for one in weights}
            if kinds == {("float", 8)} and len(blocks) == 1:
                return cls(blocks.pop())
        raise ModelError(
            f"config.json describes quantized weights (quantization_config) of method {method!r}"
            " that cannot be used; fp8 weights with scales can (methods 'fp8' and"
            " 'compressed-tensors' of type float, 8 bits), and float32, bfloat16 and float16"
        )


def _mapping(described: object, key: str) -> Mapping[str, Any]:
    """What a mapping has under `key`; nothing where either is no mapping."""
    found = described.get(key) if isinstance(described, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _sizes(stated: object) -> tuple[int, int] | None:
    """
    Raises:
        ModelError: it is there, and is no pair of sizes.
    """
    if stated is None:
        return None
    sizes = tuple(stated) if isinstance(stated, list | tuple) else ()
    if len(sizes) != 2 or not all(isinstance(one, int) and one > 0 for one in sizes):
        raise ModelError(
            f"config.json's quantization_config names blocks of {stated!r}; two sizes are needed,"
            " rows and columns that share a scale"
        )
    return sizes[0], sizes[1]
