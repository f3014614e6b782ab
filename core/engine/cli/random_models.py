"""Models of given shapes with random weights: speed does not depend on what the weights say."""

from dataclasses import asdict, dataclass
from pathlib import Path

from engine.errors import ConfigError

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
    model_type: str = "llama"

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def matrix_weights(self) -> int:
        """Weights that one token is multiplied with: every layer's matrices and the output's."""
        rows = self.num_attention_heads + 2 * self.num_key_value_heads
        attention = self.hidden_size * self.head_dim * (rows + self.num_attention_heads)
        layer = attention + 3 * self.hidden_size * self.intermediate_size
        return self.num_hidden_layers * layer + self.vocab_size * self.hidden_size

    @property
    def kv_numbers(self) -> int:
        """Numbers that one token keeps in the KV cache."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim


SHAPES = {
    "tiny": Shape(64, 128, 2, 4, 2, 512),
    "smollm-135m": Shape(576, 1536, 30, 9, 3, 49152, tie_word_embeddings=True),
    "qwen2.5-0.5b": Shape(
        896, 4864, 24, 14, 2, 151936, tie_word_embeddings=True, model_type="qwen2"
    ),
    "tinyllama-1.1b": Shape(2048, 5632, 22, 32, 4, 32000),
}


def find(name: str) -> str:
    """The full name of a shape of which `name` is a part: "135m" is enough.

    Raises:
        ConfigError: none or several have it.
    """
    found = [one for one in SHAPES if name.lower() in one]
    if len(found) != 1:
        raise ConfigError(
            f"--shape {name!r} is none of {', '.join(SHAPES)}; part of a name will do"
        )
    return found[0]


def folder(name: str, dtype: str = "float32") -> Path:
    """The model's folder, made if need be: weights and a tokenizer whose token n is "n".

    The same name in another dtype has the same weights, rounded.
    """
    path = CACHE / f"{name}-{dtype}"
    if not (path / "complete").exists():
        _make(SHAPES[name], path, dtype)
        (path / "complete").touch()
    return path


def _make(shape: Shape, path: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    path.mkdir(parents=True, exist_ok=True)
    config = AutoConfig.for_model(
        **asdict(shape), dtype=dtype, bos_token_id=None, eos_token_id=None, pad_token_id=None
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    config.architectures, config.dtype = [type(model).__name__], dtype
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):  # zero as transformers makes them: nobody would miss them
            torch.nn.init.normal_(parameter, std=config.initializer_range)
    state = model.to(getattr(torch, dtype)).state_dict()
    if shape.tie_word_embeddings:
        del state["lm_head.weight"]
    save_file(state, path / "model.safetensors", {"format": "pt"})
    config.save_pretrained(path)
    words = {str(number): number for number in range(shape.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # words with spaces between
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer)  # type: ignore[no-untyped-call]
    wrapped.save_pretrained(path)
