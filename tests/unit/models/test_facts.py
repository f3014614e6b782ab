"""What a folder says about its model, and what is said where it cannot be used."""

import json
import subprocess
import sys

import httpx
import huggingface_hub
import pytest

from engine import embedded, models
from engine.config import EngineConfig
from engine.errors import ModelError

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "eos_token_id": 2,
    "dtype": "bfloat16",
}


def write(folder, **changes):
    described = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(described))
    return folder


def read(folder, **settings):
    return models.read_facts(EngineConfig(model=str(folder), **settings))


def test_facts_are_read_from_the_folder(tmp_path):
    facts = read(write(tmp_path))
    assert facts.name == facts.path == str(tmp_path)
    assert facts.architecture == "LlamaForCausalLM"
    assert (facts.vocab_size, facts.max_model_len, facts.dtype) == (96, 64, "bfloat16")
    assert facts.eos_token_ids == (2,)


def test_embedded_is_the_model_shipped_with_the_engine(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "path", lambda: write(tmp_path))
    facts = models.read_facts(EngineConfig())
    assert (facts.name, facts.path) == ("embedded", str(tmp_path))


def test_reading_facts_imports_no_torch(tmp_path):
    program = (
        "import sys; from engine import models; from engine.config import EngineConfig;"
        "models.read_facts(EngineConfig(model=sys.argv[1]));"
        "sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(write(tmp_path))]
    assert subprocess.run(command, check=False).returncode == 0


@pytest.mark.parametrize(
    ("stated", "wanted"),
    [
        ({"dtype": None, "torch_dtype": "float16"}, "float16"),
        ({"dtype": "torch.bfloat16"}, "bfloat16"),
        ({"dtype": "float64"}, "float32"),
    ],
)
def test_the_dtype_has_several_spellings(tmp_path, stated, wanted):
    assert read(write(tmp_path, **stated)).dtype == wanted


def test_an_unstated_dtype_is_the_stored_weights(tmp_path):
    import torch
    from safetensors.torch import save_file

    write(tmp_path, dtype=None)
    save_file({"a": torch.zeros(1, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    assert read(tmp_path).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("generation", "stated", "wanted"),
    [
        ({"eos_token_id": [1, 2]}, 5, (1, 2)),
        ({"eos_token_id": 3}, 5, (3,)),
        ({}, [5, 6], (5, 6)),
        ({}, None, ()),
    ],
)
def test_the_generation_config_says_best_what_ends_a_sequence(tmp_path, generation, stated, wanted):
    write(tmp_path, eos_token_id=stated)
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert read(tmp_path).eos_token_ids == wanted


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"max_position_embeddings": None, "n_positions": 32}, 32),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 256),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2}}, 128),
        (
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32,
                }
            },
            128,
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, 64),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, 64),
        ({"rope_scaling": {"type": "longrope", "factor": 8.0}}, 64),
    ],
)
def test_the_longest_sequence_counts_rotary_scaling(tmp_path, changes, wanted):
    assert read(write(tmp_path, **changes)).max_model_len == wanted


def test_what_the_configuration_leaves_out_is_the_architectures_default(tmp_path):
    described = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_ctx": None}
    (tmp_path / "config.json").write_text(json.dumps(described))
    facts = read(tmp_path)
    assert (facts.vocab_size, facts.max_model_len) == (50257, 1024)


def test_the_text_part_of_a_configuration_counts(tmp_path):
    nested = {"vocab_size": 7, "max_position_embeddings": 8}
    facts = read(write(tmp_path, text_config=nested))
    assert (facts.vocab_size, facts.max_model_len) == (7, 8)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "a/b/c"])
def test_a_folder_that_does_not_exist(name):
    with pytest.raises(ModelError, match=r"does not exist.*embedded"):
        read(name)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelError, match="is a file; give the folder"):
        read(tmp_path / "model.gguf")


def test_a_folder_without_config(tmp_path):
    with pytest.raises(ModelError, match=r"has no config.json.*must hold"):
        read(tmp_path)


@pytest.mark.parametrize("text", ["{", "", "\x00"])
def test_broken_json(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config.json is not readable JSON.*fetch it again"):
        read(tmp_path)


def test_json_that_is_no_object(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="must hold a JSON object, but holds a list"):
        read(tmp_path)


@pytest.mark.parametrize("architectures", [None, [], "LlamaForCausalLM", [3]])
def test_no_architecture(tmp_path, architectures):
    with pytest.raises(ModelError, match="names no architecture"):
        read(write(tmp_path, architectures=architectures))


@pytest.mark.parametrize("value", [0, -1, "many", True, 1.5])
def test_an_impossible_vocabulary(tmp_path, value):
    with pytest.raises(ModelError, match="must give vocab_size as a positive whole number"):
        read(write(tmp_path, vocab_size=value))


def test_a_model_without_a_longest_sequence(tmp_path):
    described = {"architectures": ["MambaForCausalLM"], "model_type": "mamba", "vocab_size": 9}
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(ModelError, match=r"max_position_embeddings.*recurrent"):
        read(tmp_path)


class TestHub:
    """The hub's own client is replaced: tests have no network."""

    def answers(self, monkeypatch, answer):
        calls = []

        def download(name, **options):
            calls.append((name, options))
            if isinstance(answer, Exception):
                raise answer
            return str(answer)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        return calls

    def test_a_name_is_fetched_without_pickles(self, tmp_path, monkeypatch):
        calls = self.answers(monkeypatch, write(tmp_path))
        facts = read("owner/name", revision="v2")
        assert (facts.name, facts.path) == ("owner/name", str(tmp_path))
        [(name, options)] = calls
        assert (name, options["revision"]) == ("owner/name", "v2")
        assert "*.safetensors" in options["allow_patterns"]
        assert not any(p in options["allow_patterns"] for p in ("*.bin", "*.pt", "*.py"))

    def test_code_is_fetched_only_where_it_is_trusted(self, tmp_path, monkeypatch):
        calls = self.answers(monkeypatch, write(tmp_path))
        read("owner/name", trust_remote_code=True)
        assert "*.py" in calls[0][1]["allow_patterns"]

    def test_no_network(self, monkeypatch):
        error = huggingface_hub.errors.LocalEntryNotFoundError("no connection")
        self.answers(monkeypatch, error)
        with pytest.raises(ModelError, match=r"hub could not be reached.*\(no connection\)"):
            read("owner/name")

    def test_no_such_model(self, monkeypatch):
        response = httpx.Response(404, request=httpx.Request("GET", "http://hub"))
        error = huggingface_hub.errors.RepositoryNotFoundError("not found", response=response)
        self.answers(monkeypatch, error)
        with pytest.raises(ModelError, match=r"neither a folder nor a hub model 'owner/name'"):
            read("owner/name")
