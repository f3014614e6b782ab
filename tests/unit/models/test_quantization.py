"""Which weights a quantization reaches, and what is counted. The rounding is the platforms'."""

import pytest
import torch
from torch import Tensor

from engine import models, ops
from engine.config import EngineConfig
from engine.errors import ModelError
from engine.models.model import Model
from engine.ops import reference
from engine.platform import OpTable, SoloCommunicator

from .families import SIZES, make, save

NUM_BYTES = 7  # that each factory claims to keep


class Recorder:
    """Factories that quantize nothing, but remember what they were given."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, tuple[int, ...]]] = []
        self.num_bytes_given = 0
        self.table = OpTable()
        ops.fill(self.table)
        for name in ("linear", "tied_embedding", "mixture_of_experts"):
            self._register(name)

    def _register(self, name: str) -> None:
        def serves(*, quantization: str | None = None, **_: object) -> bool:
            return quantization == "int8"

        def factory(*weights: Tensor | None) -> object:
            given = [one for one in weights if one is not None and one.ndim > 1]
            self.num_bytes_given += sum(one.nbytes for one in given)
            self.seen.append((name, tuple(given[0].shape)))
            made = getattr(reference, name)(*weights)
            if name == "tied_embedding":
                return made[0], Kept(made[1])
            return Kept(made)

        self.table.register(name, source="recorder", priority=1, when=serves)(factory)


class Kept:
    num_bytes = NUM_BYTES

    def __init__(self, apply) -> None:
        self._apply = apply

    def __call__(self, *arguments: Tensor) -> Tensor:
        return self._apply(*arguments)


def load(folder, table: OpTable, quantization: str | None) -> Model:
    config = EngineConfig(model=str(folder), quantization=quantization)
    return models.load(
        models.read_facts(config),
        config=config,
        dtype="float32",
        kv_dtype="float32",
        block_size=16,
        device="cpu",
        ops=table,
        communicator=SoloCommunicator(),
        show_progress=False,
    )


@pytest.mark.parametrize("tied", [False, True])
def test_every_linear_layer_is_quantized_and_no_embedding_that_is_only_looked_up(
    tmp_path, tied: bool
) -> None:
    folder = save(make("LlamaForCausalLM", **SIZES, tie_word_embeddings=tied), tmp_path)
    recorder = Recorder()
    model = load(folder, recorder.table, "int8")
    names = [name for name, _ in recorder.seen]
    assert names.count("linear") == 3 * 4 + (not tied)  # qkv, output, gate and up, down
    assert names.count("tied_embedding") == tied
    plain = load(folder, recorder.table, None)
    assert len(recorder.seen) == len(names), "quantized without being asked to"
    saved = recorder.num_bytes_given - NUM_BYTES * len(names)
    assert model.num_bytes == plain.num_bytes - saved


def test_experts_are_quantized_but_never_their_router(tmp_path) -> None:
    sizes = SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}
    folder = save(make("MixtralForCausalLM", **sizes), tmp_path)
    recorder = Recorder()
    load(folder, recorder.table, "int8")
    assert [name for name, _ in recorder.seen].count("mixture_of_experts") == 3
    assert ("linear", (4, SIZES["hidden_size"])) not in recorder.seen


def test_the_reference_does_not_quantize_and_is_not_taken_for_it(tmp_path) -> None:
    folder = save(make("LlamaForCausalLM", **SIZES), tmp_path)
    table = OpTable()
    ops.fill(table)
    with pytest.raises(LookupError, match=r"no implementation of 'linear'.*'int8'"):
        load(folder, table, "int8")


def test_models_of_transformers_own_code_are_refused(tmp_path) -> None:
    sizes = {"vocab_size": 96, "n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 128}
    torch.manual_seed(0)
    folder = save(make("GPT2LMHeadModel", **sizes, bos_token_id=1, eos_token_id=2), tmp_path)
    with pytest.raises(ModelError, match=r"whose weights are not quantized.*without quantization"):
        load(folder, Recorder().table, "int8")
