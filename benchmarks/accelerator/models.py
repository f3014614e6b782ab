"""Models of published shapes with random weights, written where it costs no disk if possible.

Speed does not depend on what the weights say.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

#: Of a file system that lives in memory, on Linux.
MEMORY = Path("/dev/shm")
#: Free bytes that are left alone.
MARGIN = 4 << 30
DEVIATION = 0.02  # of the weights; of norms, around 1


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope_parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def query_width(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Of the keys, or of the values, of one token in one layer."""
        return self.num_key_value_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) features of one layer's matrices, as the engine fuses them."""
        return {
            "qkv": (self.hidden_size, self.query_width + 2 * self.kv_width),
            "attention output": (self.query_width, self.hidden_size),
            "gate and up": (self.hidden_size, 2 * self.intermediate_size),
            "down": (self.intermediate_size, self.hidden_size),
        }

    @property
    def layer_weights(self) -> int:
        """Numbers in the matrices of all layers; a token is multiplied with each of them."""
        return self.num_hidden_layers * sum(i * o for i, o in self.linears.values())

    @property
    def head_weights(self) -> int:
        """Numbers in the output layer."""
        return self.vocab_size * self.hidden_size

    @property
    def kv_numbers(self) -> int:
        """Numbers that one token keeps in the KV cache."""
        return 2 * self.num_hidden_layers * self.kv_width

    @property
    def num_bytes(self) -> int:
        """Of the checkpoint in bfloat16, norms and biases left out."""
        rows = 1 if self.tie_word_embeddings else 2
        return 2 * (self.layer_weights + rows * self.head_weights)


SHAPES = {
    "qwen3-0.6b": ModelShape(
        model_type="qwen3",
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        tie_word_embeddings=True,
        max_position_embeddings=40960,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    ),
    "qwen2.5-0.5b": ModelShape(
        model_type="qwen2",
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=151936,
        tie_word_embeddings=True,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    ),
    "qwen2.5-7b": ModelShape(
        model_type="qwen2",
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        head_dim=128,
        vocab_size=152064,
        tie_word_embeddings=False,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    ),
    "llama-3.1-8b": ModelShape(
        model_type="llama",
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128256,
        tie_word_embeddings=False,
        max_position_embeddings=131072,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    # For correctness and for rehearsals. Its head norms are what "tiny-llama" lacks.
    "tiny-qwen3": ModelShape(
        model_type="qwen3",
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=512,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
    "tiny-llama": ModelShape(
        model_type="llama",
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=1000,
        tie_word_embeddings=False,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
}


def place(num_bytes: int, memory: Path = MEMORY, temporary: Path | None = None) -> Path:
    """Where so many bytes fit: in memory, else among the temporary files.

    Raises:
        OSError: nowhere.
    """
    places = [memory, temporary or Path(tempfile.gettempdir())]
    for one in places:
        if one.is_dir() and shutil.disk_usage(one).free >= num_bytes + MARGIN:
            return one
    raise OSError(
        f"{(num_bytes + MARGIN) / 2**30:.1f} GiB for random weights fit neither of"
        f" {', '.join(map(str, places))}; name a folder that has room with --models, or measure"
        " smaller models with --model"
    )


def make(name: str, folder: Path, device: str) -> Path:
    """The folder of the model `name` inside `folder`, made if need be, in bfloat16.

    Random numbers are drawn on `device`; a file a layer.
    """
    path = folder / name
    if (path / "config.json").exists():
        return path
    unfinished = folder / f"{name}-unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    _write(SHAPES[name], unfinished, device)
    unfinished.rename(path)
    return path


def _write(shape: ModelShape, path: Path, device: str) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    described = {name: value for name, value in vars(shape).items() if name != "model_type"}
    config = AutoConfig.for_model(
        shape.model_type,
        **{**described, "rope_parameters": dict(shape.rope_parameters)},
        dtype="bfloat16",
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    config.architectures = [type(model).__name__]
    shapes = {name: tuple(one.shape) for name, one in model.state_dict().items()}
    if shape.tie_word_embeddings:
        del shapes["lm_head.weight"]
    generator = torch.Generator(device).manual_seed(0)
    places = {}
    for number, names in enumerate(_shards(shapes)):
        file = f"model-{number:05}.safetensors"
        tensors = {one: _random(one, shapes[one], generator, device).cpu() for one in names}
        save_file(tensors, path / file, {"format": "pt"})
        places.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": shape.num_bytes}, "weight_map": places}
    (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config.save_pretrained(path)


def _shards(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """The names of each layer, and those of none."""
    groups: dict[str, list[str]] = {}
    for name in shapes:
        _, _, layer = name.partition("layers.")
        groups.setdefault(layer.partition(".")[0], []).append(name)
    yield from groups.values()


def _random(name: str, shape: tuple[int, ...], generator: Any, device: str) -> "Tensor":
    import torch

    middle = 1.0 if name.endswith("norm.weight") else 0.0
    drawn = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
    return drawn * DEVIATION + middle
