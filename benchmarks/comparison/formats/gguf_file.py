"""A model's folder as one GGUF file, for llama.cpp. Runs in the environment of `llama.cpp`.

    python gguf_file.py MODEL_FOLDER OUT.gguf bf16|q8_0|q4_0

Llama and Qwen2 are known. Every matrix is stored in the type asked for, embeddings and output too;
norms and biases stay float32. The quantized types are those of `gguf.quants`, the reference
implementation that comes with the format.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2"}  # model_type: GGUF's name of it
PERMUTED = ("self_attn.q_proj", "self_attn.k_proj")  # in "llama" only


def interleaved(weight: Array, num_heads: int) -> Array:
    """Rows of a q or k projection in the order that GGUF's "llama" rotates.

    transformers rotates row i of a head with row i + head_dim/2, GGUF's "llama" row 2i with 2i + 1.
    `weight` [num_heads * head_dim, ...], the result likewise.
    """
    rows = weight.shape[0]
    halves = weight.reshape(num_heads, 2, rows // num_heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def main() -> int:
    source, target, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    config = json.loads((source / "config.json").read_text())
    architecture = ARCHITECTURES[config["model_type"]]
    import gguf

    writer = gguf.GGUFWriter(target, architecture)
    _describe(writer, config)
    _add_vocabulary(writer, config["vocab_size"])
    names = gguf.get_tensor_name_map(
        getattr(gguf.MODEL_ARCH, architecture.upper()), config["num_hidden_layers"]
    )
    matrix_type = gguf.GGMLQuantizationType[kind.upper()]
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"])
    for name, tensor in _tensors(source):
        module = name.removesuffix(".weight").removesuffix(".bias")
        if architecture == "llama" and module.endswith(PERMUTED):
            tensor = interleaved(tensor, _num_heads(module, config))
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise SystemExit(f"GGUF has no name for the tensor {name} of a {architecture}")
        stored = matrix_type if tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(known, gguf.quants.quantize(tensor, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return 0


def _num_heads(module: str, config: Mapping[str, Any]) -> int:
    name = "num_attention_heads" if module.endswith("q_proj") else "num_key_value_heads"
    return int(config[name])


def _tensors(source: Path) -> Iterator[tuple[str, Array]]:
    """Every tensor of the folder, as float32."""
    import ml_dtypes  # noqa: F401  safetensors needs it registered to give bfloat16
    from safetensors import safe_open

    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118  it is no dict
                yield name, tensors.get_tensor(name).astype(np.float32)


def _describe(writer: Any, config: Mapping[str, Any]) -> None:
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])


def _add_vocabulary(writer: Any, size: int) -> None:
    """Token n is "n", as in the folder's own tokenizer. Prompts come as ids, nothing is merged.

    The format needs a merge and an end of sequence; the last token is called that, and runs ignore
    it.
    """
    import gguf

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([str(number) for number in range(size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * size)
    writer.add_token_merges(["1 0"])
    writer.add_bos_token_id(size - 1)
    writer.add_eos_token_id(size - 1)
    writer.add_add_bos_token(False)


if __name__ == "__main__":
    sys.exit(main())
