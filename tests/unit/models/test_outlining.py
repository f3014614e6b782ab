"""A model's outline asks what the model itself asks, and touches no weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from engine import models, ops
from engine.config import EngineConfig
from engine.models.outlining import Outline
from engine.platform import OpTable, SoloCommunicator

from .families import SIZES, make, save

FAMILIES = {
    "llama": ("LlamaForCausalLM", {"attention_bias": True}),
    "llama, tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "qwen2, some windows": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 16}),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 4}),
}


class First(SoloCommunicator):
    """Rank 0 of several, none of which computes."""

    def __init__(self, size: int) -> None:
        self.size = size


def arguments(folder: Path, **settings: Any) -> dict[str, Any]:
    table = OpTable()
    ops.fill(table)
    for name in ("linear", "tied_embedding", "mixture_of_experts"):
        add_quantized(table, name)
    config = EngineConfig(model=str(folder), **settings)
    return {
        "facts": models.read_facts(config),
        "config": config,
        "dtype": "bfloat16",
        "kv_dtype": "float32",
        "block_size": 16,
        "device": "cpu",
        "ops": table,
    }


def add_quantized(table: OpTable, name: str) -> None:
    """A factory for int8 that keeps nothing of its weights."""

    class Made:
        num_bytes = 0

    def factory(*weights: torch.Tensor | None) -> object:
        assert all(one is None or one.device.type == "cpu" for one in weights)
        return (Made(), Made()) if name == "tied_embedding" else Made()

    def unless(*, quantization: str | None, **_: object) -> str | None:
        return None if quantization == "int8" else "only int8"

    table.register(name, source="small", priority=5, unless=unless)(factory)


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    architecture, settings = request.param
    model = make(architecture, **(SIZES | settings))
    return save(model, tmp_path_factory.mktemp("outlined"))


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_an_outline_asks_what_the_model_asks(
    folder: Path, ranks: int, quantization: str | None
) -> None:
    real = arguments(folder, quantization=quantization)
    model = models.load(**real, communicator=First(ranks), show_progress=False)
    outlined = arguments(folder, quantization=quantization)
    found = models.outline(**outlined, ranks=ranks)
    assert found is not None
    assert found.specs == model.attention_specs()
    assert outlined["ops"].answers == real["ops"].answers
    assert len(found.specs) == SIZES["num_hidden_layers"]


def test_an_outline_knows_how_large_the_weights_are(folder: Path) -> None:
    model = models.load(**arguments(folder), communicator=First(2), show_progress=False)
    found = models.outline(**arguments(folder), ranks=2)
    assert isinstance(found, Outline)
    assert found.num_bytes == model.num_bytes > 0


def test_an_outline_needs_no_weights(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    found = models.outline(**arguments(tmp_path))
    assert found is not None
    assert found.num_bytes == models.outline(**arguments(folder)).num_bytes


def test_a_model_of_transformers_code_has_no_outline(tmp_path: Path) -> None:
    settings = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 64}
    save(make("GPT2LMHeadModel", **settings), tmp_path)
    assert models.outline(**arguments(tmp_path)) is None
