"""Weight files: every layout that is read, and what is said of those that cannot be."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import ModelError
from engine.models.checkpoint import Checkpoint, Piece

from .families import SIZES, expected_logits, load, make, save
from .oracle import Cache, run

TOKENS = [5, 17, 90, 3, 44]


@pytest.fixture(scope="module")
def reference():
    return make("LlamaForCausalLM", **SIZES)


def check(folder, reference):
    got = run(load(folder), [(Cache(), TOKENS)])[0]
    torch.testing.assert_close(got, expected_logits(reference, TOKENS), atol=1e-4, rtol=0)


def test_shards_are_one_model(tmp_path, reference):
    save(reference, tmp_path, max_shard_size="80KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    check(tmp_path, reference)


def test_a_file_of_another_name_is_found(tmp_path, reference):
    save(reference, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.safetensors")
    check(tmp_path, reference)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_are_converted_on_the_way(tmp_path, stored):
    reference = make("LlamaForCausalLM", **SIZES)
    save(reference, tmp_path)
    path = tmp_path / "model.safetensors"
    weights = {name: weight.to(stored) for name, weight in load_file(path).items()}
    save_file(weights, path)
    reference.load_state_dict({name: weight.float() for name, weight in weights.items()})
    check(tmp_path, reference)


def test_a_tied_model_needs_no_output_layer_in_its_files(tmp_path):
    reference = make("LlamaForCausalLM", **(SIZES | {"tie_word_embeddings": True}))
    save(reference, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    check(tmp_path, reference)


def test_configurations_of_transformers_4_are_understood(tmp_path):
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 32}
    theta = {"rope_theta": 500.0}
    settings = {"rope_parameters": {"rope_type": "llama3", **theta, **scaling}}
    reference = make("LlamaForCausalLM", **(SIZES | settings))
    save(reference, tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    del described["rope_parameters"]
    described["torch_dtype"] = described.pop("dtype")
    described |= theta | {"rope_scaling": {"rope_type": "llama3", **scaling}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    check(tmp_path, reference)


def test_experts_are_read_apart_or_stacked(tmp_path):
    settings = SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}
    reference = make("MixtralForCausalLM", **settings)
    apart = save(reference, tmp_path / "apart")
    assert any("experts.3.w1" in name for name in load_file(apart / "model.safetensors"))
    check(apart, reference)
    stacked = save(reference, tmp_path / "stacked")
    weights = {name: weight.contiguous() for name, weight in reference.state_dict().items()}
    assert any("experts.gate_up_proj" in name for name in weights)
    save_file(weights, stacked / "model.safetensors")
    check(stacked, reference)


def test_a_piece_is_the_callers_own_copy(tmp_path):
    stored = torch.arange(12.0).reshape(3, 4)
    save_file({"a": stored, "b": stored + 100}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    pieces = [
        Piece("b", (3, 4), rows=range(1, 3), columns=range(2, 4)),
        Piece("a", (3, 4), rows=range(0, 1), columns=range(2, 4)),
    ]
    first = checkpoint.read(pieces, torch.float32, "cpu")
    assert first.tolist() == [[106, 107], [110, 111], [2, 3]]
    first.zero_()
    assert checkpoint.read(pieces, torch.float32, "cpu").tolist()[2] == [2, 3]


def test_a_whole_matrix_is_not_copied_and_the_file_stays_what_it_is(tmp_path):
    stored = torch.arange(12.0).reshape(3, 4)
    save_file({"a": stored}, tmp_path / "model.safetensors")
    checkpoint, whole = Checkpoint(tmp_path), [Piece("a", (3, 4))]
    first = checkpoint.read(whole, torch.float32, "cpu")
    again = checkpoint.read(whole, torch.float32, "cpu")
    assert first.data_ptr() == again.data_ptr()
    assert checkpoint.num_bytes_read == 2 * stored.nbytes
    converted = checkpoint.read(whole, torch.bfloat16, "cpu")
    assert torch.equal(converted, stored.to(torch.bfloat16))
    first.zero_()
    assert torch.equal(Checkpoint(tmp_path).read(whole, torch.float32, "cpu"), stored)


class TestErrors:
    @pytest.fixture
    def folder(self, tmp_path, reference):
        return save(reference, tmp_path)

    def refused(self, folder, message):
        with pytest.raises(ModelError, match=message) as caught:
            load(folder)
        return str(caught.value)

    def test_no_weights(self, folder):
        (folder / "model.safetensors").unlink()
        self.refused(folder, "holds no safetensors file; fetch the model again")

    def test_only_pickles(self, folder):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        self.refused(folder, r"pytorch_model.bin is there, but pickles can run code.*convert")

    def test_a_missing_shard(self, tmp_path, reference):
        save(reference, tmp_path, max_shard_size="80KB")
        sorted(tmp_path.glob("model-*.safetensors"))[1].unlink()
        self.refused(tmp_path, r"lacks 1 of the \d files.*model-00002-of.*fetch the model again")

    @pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": ["a"]}'])
    def test_a_broken_index(self, tmp_path, reference, text):
        save(reference, tmp_path, max_shard_size="80KB")
        (tmp_path / "model.safetensors.index.json").write_text(text)
        self.refused(tmp_path, r"index.json (is not readable JSON|has no \"weight_map\")")

    @pytest.mark.parametrize("size", [0, 5, 1000, 200_000])
    def test_a_truncated_file(self, folder, size):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:size])
        self.refused(folder, rf"model.safetensors \({size} bytes\) is truncated.*fetch it again")

    def test_a_file_of_something_else(self, folder):
        (folder / "model.safetensors").write_bytes(b"<html>not found</html>" * 9)
        self.refused(folder, "is truncated or is no safetensors file")

    def test_a_missing_weight(self, folder):
        path = folder / "model.safetensors"
        weights = load_file(path)
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, path)
        message = self.refused(folder, r"has no weight 'model.layers.1.mlp.up_proj.weight'")
        assert "lm_head.weight" in message, "says what is there"

    def test_a_weight_of_another_shape(self, folder):
        path = folder / "model.safetensors"
        name = "model.layers.1.self_attn.k_proj.weight"
        save_file(load_file(path) | {name: torch.zeros(8, 64)}, path)
        self.refused(folder, r"k_proj.weight' in .* has the shape \(8, 64\).*asks for \(16, 64\)")

    def test_a_weight_of_integers(self, folder):
        path = folder / "model.safetensors"
        save_file(load_file(path) | {"model.norm.weight": torch.zeros(64).to(torch.int8)}, path)
        self.refused(folder, "stored as torch.int8; quantized weights cannot be used")

    def test_quantized_weights(self, folder):
        self.change(folder, quantization_config={"quant_method": "gptq", "bits": 4})
        self.refused(folder, r"quantized weights \(quantization_config\)")

    def test_an_unknown_architecture(self, folder):
        self.change(folder, architectures=["NobodysModel"], model_type="nobodys")
        message = self.refused(folder, "describes NobodysModel in a way that transformers")
        assert "LlamaForCausalLM" in message, "says what can be served"

    def test_an_architecture_that_generates_nothing(self, folder):
        self.change(folder, architectures=["LlamaForTokenClassification"])
        self.refused(folder, "no language model that generates text")

    @pytest.mark.parametrize(
        "changes",
        [{"hidden_size": "wide"}, {"num_attention_heads": 0}, {"num_key_value_heads": 3}],
        ids=str,
    )
    def test_impossible_numbers(self, folder, changes):
        self.change(folder, **changes)
        self.refused(folder, r"config.json (describes LlamaForCausalLM|has 8 attention heads)")

    def change(self, folder, **changes):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_progress_bar_is_drawn_on_a_terminal_only(tmp_path, reference, monkeypatch, capsys):
    save(reference, tmp_path)
    capsys.readouterr()  # of saving
    load(tmp_path, show_progress=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    load(tmp_path, show_progress=False)
    assert capsys.readouterr().err == ""
    load(tmp_path, show_progress=True)
    assert "loading" in capsys.readouterr().err
