"""What this version does not do is refused by name; only what no server acts on is ignored."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from engine.server.openai.errors import unsupported
from engine.server.openai.requests import ChatRequest, CompletionRequest, GenerationRequest

_CONSTRAINED: Final = "Constrained decoding is not part of this version; leave this field out"


def _always(value: object) -> bool:
    return True


def _unless_false(value: object) -> bool:
    return value is not False


def _unless_text(value: object) -> bool:
    return not (isinstance(value, Mapping) and value.get("type") == "text")


def _unless_empty(value: object) -> bool:
    return value not in ("", [], {})


Refusal = tuple[Callable[[Any], bool], str]

_BOTH: Final[Mapping[str, Refusal]] = {
    "response_format": (_unless_text, 'Only response_format {"type": "text"} is possible here'),
    "structured_outputs": (_unless_empty, _CONSTRAINED),
    "guided_json": (_always, _CONSTRAINED),
    "guided_regex": (_always, _CONSTRAINED),
    "guided_choice": (_always, _CONSTRAINED),
    "guided_grammar": (_always, _CONSTRAINED),
    "use_beam_search": (_unless_false, "Beam search is not offered; use n with sampling"),
    "best_of": (lambda value: value != 1, "best_of is not offered; use n, and choose yourself"),
    "logits_processors": (_unless_empty, "Logits processors cannot be sent with a request"),
    "logprob_token_ids": (_unless_empty, "logprob_token_ids is not offered; use logprobs"),
    "spaces_between_special_tokens": (
        lambda value: value is not True,
        "spaces_between_special_tokens can only be true",
    ),
    "prompt_embeds": (_always, "Prompts are texts or token ids; embeddings are not offered"),
    "kv_transfer_params": (_unless_empty, "KV transfer is not part of this version"),
    "thinking_token_budget": (_always, "thinking_token_budget is not offered; use max_tokens"),
    "repetition_detection": (_unless_empty, "repetition_detection is not offered"),
}
_COMPLETIONS: Final[Mapping[str, Refusal]] = {
    "suffix": (_unless_empty, "Filling in before a suffix is not offered"),
}
_CHAT: Final[Mapping[str, Refusal]] = {
    "chat_template": (
        _always,
        "This server takes no chat template from requests; it is chosen at start, "
        "with --chat-template",
    ),
    "audio": (_always, "Audio output is not offered"),
    "functions": (_unless_empty, "functions is outdated; use tools"),
    "function_call": (lambda value: value != "none", "function_call is outdated; use tool_choice"),
    "echo": (_unless_false, "echo is offered on /v1/completions only"),
    "modalities": (lambda value: value != ["text"], 'The only modality is ["text"]'),
}


def refuse_unsupported(request: GenerationRequest) -> None:
    """Raises HttpError 400, naming the field, where `request` asks for what is not offered."""
    table = dict(_BOTH)
    if isinstance(request, CompletionRequest):
        table |= _COMPLETIONS
    if isinstance(request, ChatRequest):
        table |= _CHAT
    for name, (applies, message) in table.items():
        value = getattr(request, name)
        if value is not None and applies(value):
            raise unsupported(name, f"{name}: {message}")
