"""Random-weight models of given shapes: speed does not depend on what the weights say."""

from dataclasses import dataclass
from pathlib import Path

CACHE = Path.home() / ".cache" / "engine" / "benchmarks"


@dataclass(frozen=True)
class Shape:
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 2048


SHAPES = {
    "tiny": Shape(64, 128, 2, 4, 2, 512),
    "smollm-135m": Shape(576, 1536, 30, 9, 3, 49152, tie_word_embeddings=True),
    "tinyllama-1.1b": Shape(2048, 5632, 22, 32, 4, 32000),
}


def folder(name: str, dtype: str = "float32") -> Path:
    """The model's folder, made if need be: a Llama, and a tokenizer whose token n is "n"."""
    path = CACHE / f"{name}-{dtype}"
    if not (path / "complete").exists():
        _make(SHAPES[name], path, dtype)
        (path / "complete").touch()
    return path


def _make(shape: Shape, path: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(
        **vars(shape),
        architectures=["LlamaForCausalLM"],
        dtype=dtype,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    state = LlamaForCausalLM(config).to(getattr(torch, dtype)).state_dict()
    if shape.tie_word_embeddings:
        del state["lm_head.weight"]
    save_file(state, path / "model.safetensors", {"format": "pt"})
    config.save_pretrained(path)
    words = {str(number): number for number in range(shape.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # words with spaces between
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)
