"""The messages and tools of a chat, in OpenAI's form, and the model's own form of a tool call."""

import json
import re
from typing import Literal, NotRequired, TypedDict

CALL_ID = "call_0"
"""The id of every call in the embedded model's world, which has one call at a time."""


class CalledFunction(TypedDict):
    """A tool's name and its arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """One call in an assistant message, in OpenAI's form."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class Message(TypedDict):
    """One message of a chat, in OpenAI's form."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: NotRequired[list[ToolCall]]
    tool_call_id: NotRequired[str]


class Function(TypedDict):
    """A tool's signature; `parameters` is a JSON schema."""

    name: str
    description: str
    parameters: dict[str, object]


class Tool(TypedDict):
    """A tool that the model may call, in OpenAI's form."""

    type: Literal["function"]
    function: Function


def city_tool(name: str, description: str, parameter: str = "city") -> Tool:
    """A tool that takes the name of a city and nothing else."""
    schema: dict[str, object] = {
        "type": "object",
        "properties": {parameter: {"type": "string"}},
        "required": [parameter],
    }
    function: Function = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "function": function}


WEATHER = city_tool("get_weather", "Get the weather in a city.")
TIME = city_tool("get_time", "Get the time in a city.")


def call_text(function: Function, argument: str) -> str:
    """The reply which calls the function with its one argument: what the model itself generates."""
    properties = function["parameters"]["properties"]
    assert isinstance(properties, dict)
    (parameter,) = properties
    call = {"name": function["name"], "arguments": {parameter: argument}}
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"


def called(reply: str) -> object | None:
    """The parsed JSON if the reply is one tool call and nothing else."""
    match = _TOOL_CALL.fullmatch(reply.strip())
    if match is None:
        return None
    try:
        call: object = json.loads(match.group(1))
    except ValueError:
        return None
    return call


_TOOL_CALL = re.compile(r"<tool_call>(.*)</tool_call>", re.DOTALL)


def as_message(reply: str) -> Message:
    """The reply as an assistant message, with a tool call in OpenAI's form."""
    call = called(reply)
    if call is None:
        return {"role": "assistant", "content": reply}
    assert isinstance(call, dict)
    arguments = json.dumps(call["arguments"], ensure_ascii=False)
    tool_call: ToolCall = {
        "id": CALL_ID,
        "type": "function",
        "function": {"name": call["name"], "arguments": arguments},
    }
    return {"role": "assistant", "content": "", "tool_calls": [tool_call]}
