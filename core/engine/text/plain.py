"""Tokenizers that are all in their tokenizer.json, as most are.

transformers reads every kind of tokenizer, but to import it takes a second. Where it would add
nothing to what tokenizer.json says, the `tokenizers` library alone gives the same ids and texts.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

_NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "sep_token",
    "cls_token",
    "mask_token",
)
#: What a token is beside its text.
_FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")
#: Settings that change a tokenizer, or may.
_UNUSUAL = frozenset(
    {"auto_map", "fix_mistral_regex", "gguf_file", "init_inputs", "split_special_tokens"}
)
#: Read only where the settings have no "added_tokens_decoder".
_OLDER_FILES = ("special_tokens_map.json", "added_tokens.json")
#: transformers warns of some tokenizers of these models, from this size on.
_SUSPECTS = frozenset({None, "mistral", "mistral3", "voxtral", "ministral", "pixtral"})
_SUSPECT_FROM = 100_000


@dataclass(frozen=True, slots=True)
class PlainTokenizer:
    """What transformers would have read."""

    fast: tokenizers.Tokenizer
    bos_token_id: int | None
    eos_token_id: int | None
    chat_template: str | None

    @classmethod
    def read(cls, folder: Path) -> "PlainTokenizer | None":
        """Of a model's folder; None where only transformers can tell.

        Raises:
            Exception: a file is damaged.
        """
        if not (folder / "tokenizer.json").is_file():
            return None
        settings = _object(folder / "tokenizer_config.json")
        older = "added_tokens_decoder" not in settings
        if any(map(settings.get, _UNUSUAL)) or (folder / "additional_chat_templates").exists():
            return None
        if older and any((folder / name).exists() for name in _OLDER_FILES):
            return None
        template = settings.get("chat_template")
        if (own := folder / "chat_template.jinja").is_file():
            template = own.read_text(encoding="utf-8")
        fast = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        if not isinstance(template, str | None) or not _complete(fast, settings, folder):
            return None
        return cls(
            fast,
            _id(fast, settings.get("bos_token")),
            _id(fast, settings.get("eos_token")),
            template,
        )


def _complete(fast: tokenizers.Tokenizer, settings: Mapping[str, Any], folder: Path) -> bool:
    """Whether tokenizer.json has all tokens that the settings name, with the same flags."""
    model = _object(folder / "config.json")
    suspect = bool(model) and model.get("model_type") in _SUSPECTS
    if suspect and fast.get_vocab_size() > _SUSPECT_FROM:
        return False
    added = fast.get_added_tokens_decoder()
    by_text = {token.content: token for token in added.values()}
    for text in _special(settings):
        if not isinstance(text, str) or text not in by_text or not by_text[text].special:
            return False
    stated = settings.get("added_tokens_decoder", {})
    return all(int(id) in added and _same(added[int(id)], token) for id, token in stated.items())


def _special(settings: Mapping[str, Any]) -> Iterator[Any]:
    """Texts of the special tokens that the settings name; something else where they name more."""
    for name in settings:
        if name in _NAMED and settings[name] is not None:
            yield _text(settings[name])
        elif name.endswith("_token") and isinstance(settings[name], str | dict):
            yield None  # a token of the model's own kind
    for name in ("extra_special_tokens", "additional_special_tokens"):
        extra = settings.get(name) or []
        yield from map(_text, extra) if isinstance(extra, list) else [None]


def _text(token: Any) -> Any:
    """A token is its text, or an object with flags."""
    if isinstance(token, dict):
        return token.get("content") if token.get("__type") == "AddedToken" else None
    return token


def _same(token: tokenizers.AddedToken, stated: Mapping[str, Any]) -> bool:
    flags = {name: getattr(token, name) for name in _FLAGS}
    return token.content == stated.get("content") and all(
        stated.get(name, flags[name]) == flags[name] for name in _FLAGS
    )


def _id(fast: tokenizers.Tokenizer, token: Any) -> int | None:
    return None if token is None else fast.token_to_id(_text(token))


def _object(path: Path) -> dict[str, Any]:
    """The file's object; empty where there is none."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found
