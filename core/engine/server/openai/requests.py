"""What the OpenAI endpoints take, with vLLM's extra fields.

`None` is "absent" everywhere: a client's null means the same. Fields that are not named here are
ignored, because clients send what other servers know. Fields typed `Any` are read by hand: those
that come in several shapes, and those that are refused (`refused.py`).
"""

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

Int: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Size: TypeAlias = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]


class StreamOptions(Struct, frozen=True, kw_only=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationRequest(Struct, kw_only=True):
    """What completions and chat completions have in common."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    n: Size | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: Int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[Size, float] | None = None
    max_tokens: Size | None = None
    stop: str | list[str] | None = None

    top_k: Size | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    min_tokens: Size | None = None
    stop_token_ids: list[Size] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[Size] | None = None
    prompt_logprobs: Size | None = None

    priority: Size | None = None
    cache_salt: str | None = None
    request_id: str | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Size | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    echo: bool | None = None

    best_of: Any = None
    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    guided_decoding_backend: Any = None
    use_beam_search: Any = None
    length_penalty: Any = None
    spaces_between_special_tokens: Any = None
    logits_processors: Any = None
    logprob_token_ids: Any = None
    prompt_embeds: Any = None
    kv_transfer_params: Any = None
    thinking_token_budget: Any = None
    repetition_detection: Any = None


class CompletionRequest(GenerationRequest, kw_only=True):
    prompt: Any = None  # str | list[str] | list[int] | list[list[int]]
    logprobs: Size | None = None
    suffix: Any = None


class ChatRequest(GenerationRequest, kw_only=True):
    messages: Any = None  # read by conversation.py
    max_completion_tokens: Size | None = None
    logprobs: bool | None = None
    top_logprobs: Size | None = None

    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    modalities: list[str] | None = None
    audio: Any = None
    reasoning_effort: str | None = None

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: Any = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None


class TokenizeRequest(Struct, kw_only=True):
    """A text, or messages as the chat endpoint would template them."""

    model: str | None = None
    prompt: str | None = None
    messages: Any = None
    tools: Any = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: Any = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Struct, kw_only=True):
    model: str | None = None
    tokens: list[Size]


class FunctionCall(Struct, kw_only=True):
    name: str
    arguments: str | dict[str, Any] = ""


class ToolCall(Struct, kw_only=True):
    function: FunctionCall
    id: str | None = None
    type: Literal["function"] = "function"


class Part(Struct, kw_only=True):
    """A piece of a message's content; what it must carry depends on `type`."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Message(Struct, kw_only=True):
    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class FunctionDefinition(Struct, kw_only=True):
    name: Annotated[str, Meta(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Struct, kw_only=True):
    type: Literal["function"]
    function: FunctionDefinition


MESSAGES = Annotated[list[Message], Meta(min_length=1)]
TOOLS = Annotated[list[Tool], Meta(min_length=1)]
