"""Messages as clients send them, made into what chat templates expect.

Templates know system, user, assistant and tool messages whose content is a string, and tool calls
whose arguments are objects; the API has more spellings than that.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from engine.errors import RequestError
from engine.server.openai.errors import unsupported
from engine.server.openai.json import convert
from engine.server.openai.requests import MESSAGES, TOOLS, Message, Part, Tool, ToolCall

#: Template variables the server sets itself, and arguments of the renderer. A request that could
#: set them could bring its own template or break its own request in obscure ways.
RESERVED_TEMPLATE_NAMES: Final = frozenset(
    (
        *("messages", "conversation", "conversations", "tools", "documents", "self"),
        *("template", "chat_template", "add_generation_prompt", "continue_final_message"),
        *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
        *("return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs"),
        *("load_audio_from_video", "sampling_rate", "video_load_backend", "num_frames", "fps"),
    )
)

#: The template's name for each role: a developer speaks where a system message used to.
_ROLES: Final = {"developer": "system", "function": "tool"}

_MEDIA: Final = frozenset(
    (
        *("image", "image_url", "input_image", "image_embeds", "file"),
        *("audio_url", "input_audio", "video_url"),
    )
)


def read_messages(messages: Any) -> list[dict[str, Any]]:
    """`messages` of a request, checked and made plain.

    Raises:
        RequestError: they are not messages; `parameter` names where.
        HttpError: they carry images, audio or files.
    """
    if messages is None:
        raise RequestError("messages is required: a list of at least one message", "messages")
    found = convert(messages, MESSAGES, "messages")
    return [_plain(message, f"messages[{i}]") for i, message in enumerate(found)]


def read_tools(tools: Any, choice: Any) -> list[dict[str, Any]] | None:
    """The tools that the template is to show, or None.

    Raises:
        RequestError: tools or tool_choice is malformed.
        HttpError: tool_choice forces a call, which needs constrained decoding.
    """
    if tools is None:
        if choice is not None and choice != "none":
            raise RequestError("tool_choice needs tools", "tool_choice")
        return None
    found = convert(tools, TOOLS, "tools")
    if choice == "none":
        return None  # a model that is shown no tools calls none
    if choice is not None and choice != "auto":
        _refuse_choice(choice, found)
    return [msgspec.to_builtins(tool) | _without_nulls(tool) for tool in found]


def read_template_arguments(arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """Raises RequestError where a name is the server's own."""
    found = dict(arguments or {})
    if taken := sorted(RESERVED_TEMPLATE_NAMES & set(found)):
        raise RequestError(
            f"chat_template_kwargs cannot set {', '.join(taken)}", "chat_template_kwargs"
        )
    return found


def _refuse_choice(choice: Any, tools: list[Tool]) -> None:
    if choice == "required":
        raise unsupported(
            "tool_choice", 'Forced tool calls are not offered yet; use tool_choice "auto"'
        )
    match choice:
        case {"type": "function", "function": {"name": str(name)}}:
            if name not in {tool.function.name for tool in tools}:
                raise RequestError("tool_choice names a tool that tools lacks", "tool_choice")
            raise unsupported(
                "tool_choice", 'Forced tool calls are not offered yet; use tool_choice "auto"'
            )
    raise RequestError('tool_choice must be "auto" or "none" here', "tool_choice")


def _plain(message: Message, place: str) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": _ROLES.get(message.role, message.role)}
    if message.content is None and not (message.role == "assistant"):
        raise RequestError(f"{place}: a {message.role} message needs content", f"{place}.content")
    plain["content"] = _text(message.content, f"{place}.content")
    if message.refusal and not plain["content"]:
        plain["content"] = message.refusal
    if message.tool_calls:
        if message.role != "assistant":
            raise RequestError(f"{place}: only the assistant calls tools", f"{place}.tool_calls")
        plain["tool_calls"] = [_plain_call(call) for call in message.tool_calls]
    for name, value in (
        ("name", message.name),
        ("tool_call_id", message.tool_call_id),
        ("reasoning_content", message.reasoning_content or message.reasoning),
    ):
        if value is not None:
            plain[name] = value
    return plain


def _text(content: str | list[Part] | None, place: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not content:
        raise RequestError(f"{place}: the list of parts is empty", place)
    return "\n".join(_part_text(part, f"{place}[{i}]") for i, part in enumerate(content))


def _part_text(part: Part, place: str) -> str:
    if part.type in _MEDIA:
        raise unsupported(place, f"{place}: this model reads text only, not {part.type} parts")
    if part.type in ("text", "input_text", "output_text") and part.text is not None:
        return part.text
    if part.type == "refusal" and part.refusal is not None:
        return part.refusal
    if part.type in ("text", "input_text", "output_text", "refusal"):
        raise RequestError(f"{place}: a part of type {part.type} needs its text", place)
    raise RequestError(f"{place}: unknown type of part; there are text and refusal", place)


def _plain_call(call: ToolCall) -> dict[str, Any]:
    """Templates iterate over arguments; the API sends them as a string of JSON."""
    arguments: Any = call.function.arguments
    if isinstance(arguments, str):
        try:
            parsed = msgspec.json.decode(arguments or "{}")
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            parsed = arguments  # what a model once wrote need not be JSON
        arguments = parsed if isinstance(parsed, dict) else arguments
    plain = {
        "type": "function",
        "function": {"name": call.function.name, "arguments": arguments},
    }
    return plain if call.id is None else plain | {"id": call.id}


def _without_nulls(tool: Tool) -> dict[str, Any]:
    function = msgspec.to_builtins(tool.function)
    return {"function": {name: value for name, value in function.items() if value is not None}}
