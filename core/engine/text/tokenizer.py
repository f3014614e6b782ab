"""A model's tokenizer and its chat template.

Where `tokenizer.json` says everything, the `tokenizers` library reads it; `transformers` reads the
rest, and renders chat templates. A folder with a `tokenizer.json` is read without importing torch,
so that a process which only handles text stays small.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import ModelError, RequestError
from engine.text.plain import PlainTokenizer
from engine.text.token_bytes import ByteTable, byte_ids, decoder_kinds

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerBase

#: One chat message: role, content, and what the template knows beyond (name, tool_calls, …).
Message = Mapping[str, Any]

#: Any of these means that the folder has a tokenizer.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
)


class Tokenizer:
    """Text to token ids and back. Its methods may be called from several threads."""

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        """Raises whatever the libraries do where a file is damaged; see `find`."""
        self._folder = folder
        self._trust_remote_code = trust_remote_code
        known = PlainTokenizer.read(folder) or self._wrapped
        self._fast = known.fast if isinstance(known, PlainTokenizer) else _fast(known)
        # Read once: on the wrapped tokenizer, these are searched for at every access.
        self.vocab_size = self._fast.get_vocab_size() if self._fast else len(self._wrapped)
        self.bos_token_id: int | None = known.bos_token_id
        self.eos_token_id: int | None = known.eos_token_id
        self.special_ids = self._special_ids()
        self.chat_template = _default_template(known.chat_template)
        if self._fast:
            self._fast.no_truncation()  # some files ask for them; a prompt is never cut in silence
            self._fast.no_padding()
        self._letter = self.encode("a", add_special_tokens=False)[-1:]
        kinds = decoder_kinds(self._fast)
        self.bytes_of = ByteTable(self._fast) if self._fast and kinds == ["ByteLevel"] else None
        self.byte_ids = byte_ids(self._fast) if "ByteFallback" in kinds else {}
        self._token_bytes = lru_cache(maxsize=65536)(self._find_token_bytes)

    @classmethod
    def load(cls, path: str, *, trust_remote_code: bool = False) -> "Tokenizer":
        """Read the tokenizer in the model's folder.

        Raises:
            ModelError: there is none, or its files cannot be used.
        """
        found = cls.find(path, trust_remote_code=trust_remote_code)
        if found is None:
            raise ModelError(
                f"{path} has no tokenizer: none of {', '.join(FILES)} is there; add the files,"
                " or use token ids in place of text"
            )
        return found

    @classmethod
    def find(cls, path: str, *, trust_remote_code: bool = False) -> "Tokenizer | None":
        """As `load`, but None when the folder has no tokenizer files at all.

        Raises:
            ModelError: there are files, but they cannot be used.
        """
        if not any((Path(path) / name).is_file() for name in FILES):
            return None
        try:
            return cls(Path(path), trust_remote_code=trust_remote_code)
        except Exception as error:  # whatever the files made the library do
            raise ModelError(f"the tokenizer in {path} cannot be used: {error}") from error

    @staticmethod
    def import_renderer() -> None:
        """Import what chat templates are rendered with, so that the first one need not wait."""
        import transformers.tokenization_utils_tokenizers  # noqa: F401

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; `add_special_tokens`: with what the model expects around a prompt.

        Raises:
            RequestError: the text is not Unicode (half of a surrogate pair).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"the text is not valid Unicode: {error.reason}") from error
        if self._fast is not None:
            return list(self._fast.encode(text, add_special_tokens=add_special_tokens).ids)
        return list(self._wrapped.encode(text, add_special_tokens=add_special_tokens))

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`. Bytes that are not UTF-8 become U+FFFD; unknown ids, nothing."""
        if self._fast is not None:
            return self._fast.decode(list(ids), skip_special_tokens=skip_special_tokens)
        known = [id for id in ids if 0 <= id < self.vocab_size]
        text = self._wrapped.decode(
            known, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return str(text)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template: str | None = None,
        **template_kwargs: Any,
    ) -> list[int]:
        """Token ids of a conversation; `template` (Jinja) is used in place of the model's own.

        Raises:
            RequestError: there is no template, or it refuses the messages.
        """
        text = self.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template=template,
            **template_kwargs,
        )
        return self.encode(text, add_special_tokens=False)  # the template has written them

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template: str | None = None,
        **template_kwargs: Any,
    ) -> str:
        """As `chat`, but the text before it is encoded."""
        if template is None and self.chat_template is None:
            raise RequestError(
                "this model has no chat template: use the completions interface, or start the"
                " engine with a chat template",
                "messages",
            )
        if not messages:
            raise RequestError("messages must not be empty", "messages")
        if add_generation_prompt and continue_final_message:
            raise RequestError(
                "add_generation_prompt and continue_final_message exclude each other:"
                " a new message is started, or the last one goes on",
                "continue_final_message",
            )
        if clash := _RESERVED & template_kwargs.keys():
            raise RequestError(f"the chat template's {sorted(clash)} cannot be set", "messages")
        options = {
            "chat_template": template,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            **template_kwargs,
        }
        try:
            return self._apply(messages, tools, options)
        except Exception as error:  # a template is a program, and raises what it likes
            reason = str(error)[:300] or type(error).__name__
            raise RequestError(
                f"the chat template refused the messages: {reason}", "messages"
            ) from error

    def token_text(self, id: int) -> str:
        """What the token adds to a running text; its name if it is special; "" if unknown."""
        return self.token_bytes(id).decode(errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes that the token adds to a running text; a special one's name in UTF-8."""
        return self._token_bytes(id)

    @cached_property
    def _wrapped(self) -> "PreTrainedTokenizerBase":
        return _read(self._folder, self._trust_remote_code)

    def _special_ids(self) -> frozenset[int]:
        if self._fast is None:
            return frozenset(self._wrapped.all_special_ids)
        added = self._fast.get_added_tokens_decoder()
        return frozenset(id for id, token in added.items() if token.special)

    def _apply(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        options: Mapping[str, Any],
    ) -> str:
        plain = [dict(message) for message in messages]
        given: list[Any] = [dict(tool) for tool in tools or ()]
        apply = self._wrapped.apply_chat_template
        try:
            return str(apply(plain, tools=given or None, tokenize=False, **options))
        except TypeError:
            if given:
                raise
            # Templates made for tools often go through them without looking for any.
            return str(apply(plain, tools=[], tokenize=False, **options))

    def _find_token_bytes(self, id: int) -> bytes:
        if self.bytes_of is not None:
            return self.bytes_of[id]
        if id in self.byte_ids:
            return self.byte_ids[id]
        # After a letter, because at the start of a text some decoders drop a space.
        before = self.decode(self._letter, skip_special_tokens=False)
        return self.decode([*self._letter, id], skip_special_tokens=False)[len(before) :].encode()


#: What `apply_chat_template` takes itself: a request must not reach it through the template's.
_RESERVED = frozenset(
    {
        "conversation",
        "sanitize_control_tokens",
        "chat_template",
        "messages",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenize",
        "tokenizer_kwargs",
    }
)


def _read(folder: Path, trust_remote_code: bool) -> "PreTrainedTokenizerBase":
    wrapped: PreTrainedTokenizerBase
    if (folder / "tokenizer.json").is_file() and not (trust_remote_code and _has_code(folder)):
        from transformers.tokenization_utils_tokenizers import TokenizersBackend

        wrapped = TokenizersBackend.from_pretrained(str(folder), local_files_only=True)
    else:
        from transformers import AutoTokenizer

        wrapped = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=trust_remote_code
        )
    return wrapped


def _has_code(folder: Path) -> bool:
    """Whether the folder brings a tokenizer class of its own."""
    file = folder / "tokenizer_config.json"
    return file.is_file() and "auto_map" in json.loads(file.read_text(encoding="utf-8"))


def _fast(wrapped: "PreTrainedTokenizerBase") -> "tokenizers.Tokenizer | None":
    """The Rust tokenizer inside, if there is one: quicker, and safe to share among threads."""
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    if not isinstance(wrapped, TokenizersBackend):
        return None
    return wrapped.backend_tokenizer


def _default_template(template: str | dict[str, str] | None) -> str | None:
    return template.get("default") if isinstance(template, dict) else template  # several, by name
