"""What a model's folder says about it, read without torch as long as it says what is needed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine import embedded
from engine.config import DTYPES, EngineConfig
from engine.errors import ModelError
from engine.facts import ModelFacts
from engine.models import hub
from engine.models.configuration import transformers_configuration
from engine.models.json_file import read_json

#: How configurations name the tokens a model may hold, best first.
_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
_SAFETENSORS_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def read_facts(config: EngineConfig) -> ModelFacts:
    """Find the model that `config.model` names, fetch it if it is a hub name, and read what it is.

    Raises:
        ModelError: there is no such model, or its description cannot be used.
    """
    folder = find_folder(config)
    described = read_json(folder / "config.json")
    text = {**described, **_mapping(described.get("text_config"))}
    architecture = _architecture(described, folder)
    if None in _required(text).values():  # the architecture's own defaults count
        text = {**_with_defaults(folder, architecture, config.trust_remote_code), **text}
    values = _required(text)
    return ModelFacts(
        name=config.model,
        path=str(folder),
        architecture=architecture,
        dtype=_dtype(text, folder),
        vocab_size=_positive(values["vocab_size"], "vocab_size", folder),
        max_model_len=_stretched(_positive(values["length"], _LENGTH_KEYS[0], folder), text),
        eos_token_ids=_eos_token_ids(folder, text),
    )


def find_folder(config: EngineConfig) -> Path:
    """The local folder of `config.model`: the embedded model, a folder, or a hub name's snapshot.

    Raises:
        ModelError: there is none, or it has no config.json.
    """
    if config.model == "embedded":
        folder = embedded.path()
    else:
        folder = Path(config.model).expanduser()
        if not folder.exists():
            folder = hub.fetch(config)
    if not folder.is_dir():
        raise ModelError(
            f"model {config.model!r} is a file; give the folder that holds config.json and the "
            "safetensors files"
        )
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} has no config.json, so it is no model folder; it must hold config.json, "
            "safetensors files and a tokenizer, as `save_pretrained` writes them"
        )
    return folder.resolve()


def _required(text: Mapping[str, Any]) -> dict[str, Any]:
    lengths = [text[key] for key in _LENGTH_KEYS if text.get(key) is not None]
    return {"vocab_size": text.get("vocab_size"), "length": lengths[0] if lengths else None}


def _with_defaults(folder: Path, architecture: str, trust_remote_code: bool) -> dict[str, Any]:
    config = transformers_configuration(folder, architecture, trust_remote_code=trust_remote_code)
    text = config.get_text_config()
    found: dict[str, Any] = text.to_dict()
    return found | {name: found.get(other) for name, other in text.attribute_map.items()}


def _architecture(described: Mapping[str, Any], folder: Path) -> str:
    names = described.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ModelError(
            f"{folder / 'config.json'} names no architecture; it needs a line such as "
            '"architectures": ["LlamaForCausalLM"]'
        )
    return names[0]


def _dtype(text: Mapping[str, Any], folder: Path) -> str:
    """As config.json states it (transformers 5 writes "dtype", 4 "torch_dtype"), else as stored."""
    stated = text.get("dtype") or text.get("torch_dtype")
    if isinstance(stated, str):
        stated = stated.removeprefix("torch.")
        return stated if stated in DTYPES and stated != "auto" else "float32"
    return _stored_dtype(folder)


def _stored_dtype(folder: Path) -> str:
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors"))[:1]:
        try:
            with safe_open(path, framework="numpy") as file:
                stored = [file.get_slice(name).get_dtype() for name in file.keys()]  # noqa: SIM118
        except (SafetensorError, OSError):
            break  # loading tells what is wrong with the file
        return next((_SAFETENSORS_DTYPES[d] for d in stored if d in _SAFETENSORS_DTYPES), "float32")
    return "float32"


def _positive(value: object, key: str, folder: Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(
            f"{folder / 'config.json'} must give {key} as a positive whole number, got {value!r}; "
            "a model that states none, as recurrent ones do, cannot be served"
        )
    return value


def _stretched(length: int, text: Mapping[str, Any]) -> int:
    """Tokens, once rotary scaling is counted ("rope_scaling" until transformers 4).

    For llama3 and longrope the stated length counts it already. Dynamic scaling changes the
    frequencies with the length of each sequence, which a cache of rotated keys cannot follow, so
    such a model keeps the length at which its frequencies are the original ones.
    """
    scaling = _mapping(text.get("rope_parameters")) or _mapping(text.get("rope_scaling"))
    kind = scaling.get("rope_type", scaling.get("type"))
    factor = scaling.get("factor")
    if kind not in ("linear", "yarn") or not isinstance(factor, int | float):
        return length
    original = scaling.get("original_max_position_embeddings")
    if kind == "yarn" and isinstance(original, int):
        return max(length, int(original * factor))
    return int(length * factor)


def _eos_token_ids(folder: Path, text: Mapping[str, Any]) -> tuple[int, ...]:
    """generation_config.json's, or else config.json's: one id, a list of ids, or none."""
    path = folder / "generation_config.json"
    generation = read_json(path) if path.is_file() else {}
    for source in (generation, text):
        found = source.get("eos_token_id")
        ids = found if isinstance(found, list) else [found]
        if found is not None and all(isinstance(one, int) for one in ids):
            return tuple(ids)
    return ()


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
