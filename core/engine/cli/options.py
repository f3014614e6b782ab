"""Options of the command line, made from the dataclasses that they fill.

Names, types and defaults come from the dataclass; this file adds the words. Only what the user
really gave becomes a setting, so that a platform's better default is not overruled by the
command line's.
"""

import argparse
import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.config import DTYPES, QUANTIZATIONS, EngineConfig
from engine.params import SamplingParams

if TYPE_CHECKING:
    from engine.server.options import ServerOptions


@dataclasses.dataclass(frozen=True, slots=True)
class Words:
    """What the dataclass does not say about one of its fields."""

    help: str
    flag: str = ""  # empty: from the field's name
    metavar: str = ""
    choices: tuple[str, ...] = ()


ENGINE: Mapping[str, Words] = {
    "model": Words("a local folder, a hub name, or the model shipped with the engine"),
    "revision": Words("branch, tag or commit of a hub name"),
    "device": Words("platform, and which of its devices", metavar="NAME[:INDEX,…]"),
    "dtype": Words("dtype of weights and activations; auto: the device's best", choices=DTYPES),
    "kv_dtype": Words("dtype of the KV cache; auto: as --dtype", metavar="DTYPE"),
    "quantization": Words(
        "round the weights of linear layers to 8 or 4 bits while loading; unset: keep them",
        choices=QUANTIZATIONS,
    ),
    "block_size": Words("tokens in a KV block; unset: the device's choice", metavar="TOKENS"),
    "max_model_len": Words(
        "most tokens that prompt and output may have; unset: the model's", metavar="TOKENS"
    ),
    "max_batch_tokens": Words("most tokens computed in one step", metavar="TOKENS"),
    "max_requests": Words("most requests computed in one step", metavar="COUNT"),
    "memory_fraction": Words("share of the device's memory that may be used", metavar="SHARE"),
    "num_blocks": Words("KV blocks; unset: as many as fit", metavar="COUNT"),
    "prefix_caching": Words("reuse the KV of equal beginnings of prompts"),
    "overlap": Words("start a step before the tokens of the last one were read; unset: if it pays"),
    "step_target_s": Words(
        "while requests decode, cut prompts so that a step takes about so long; 0: do not",
        "--step-target",
        "SECONDS",
    ),
    "seed": Words("seed of the random choices that no request's own seed decides"),
    "trust_remote_code": Words("run Python code that comes with a model; off unless you ask"),
    "tensor_parallel": Words("devices that share the model, a process for each", metavar="COUNT"),
    "step_timeout_s": Words(
        "a step that takes longer hangs, and the engine ends with an error; 0: no limit",
        "--step-timeout",
        "SECONDS",
    ),
}

SAMPLING: Mapping[str, Words] = {
    "max_tokens": Words(
        "most tokens to generate; unset: up to the context's end", metavar="TOKENS"
    ),
    "temperature": Words("0: always the most likely token"),
    "top_p": Words("sample from the most likely tokens that together have this share"),
    "top_k": Words("sample from this many most likely tokens; 0: from all", metavar="COUNT"),
    "min_p": Words("leave out tokens less likely than this share of the most likely one's"),
    "repetition_penalty": Words("over 1 makes repeating a token less likely"),
    "stop": Words("end before this text; may be given again", metavar="TEXT"),
}

#: Where the command line differs from the library: the same command gives the same answer.
SAMPLING_DEFAULTS: Mapping[str, Any] = {"temperature": 0.0, "max_tokens": None}

SERVER: Mapping[str, Words] = {
    "host": Words("address to listen on; 0.0.0.0: every one of this machine's"),
    "port": Words("port to listen on; 0: a free one, named in the ready line"),
    "uds": Words("unix socket to listen on instead", metavar="PATH"),
    "served_model_names": Words(
        "what clients call the model; may be given again", "--served-model-name", "NAME"
    ),
    "api_keys": Words("key that clients must have; may be given again", "--api-key", "KEY"),
    "chat_template": Words("Jinja file that replaces the model's own", metavar="PATH"),
    "shutdown_timeout_s": Words(
        "how long running requests may take after SIGTERM", "--shutdown-timeout", "SECONDS"
    ),
    "linger_s": Words("how long a server whose engine died still answers", "--linger", "SECONDS"),
    "max_queue": Words(
        "most requests that wait; more are refused; unset: no limit", metavar="COUNT"
    ),
    "max_body_bytes": Words("most bytes in one request", metavar="BYTES"),
    "body_timeout_s": Words(
        "how long a client may take to send a request", "--body-timeout", "SECONDS"
    ),
    "allowed_origins": Words(
        "web site whose pages may call the API from a browser; may be given again",
        "--allowed-origin",
        "ORIGIN",
    ),
    "access_log": Words("log a line for every request"),
    "log_level": Words("critical, error, warning, info or debug", metavar="LEVEL"),
}


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        default=argparse.SUPPRESS,
        help=f"{ENGINE['model'].help} (default: {EngineConfig().model})",
    )


def add_engine(parser: argparse.ArgumentParser, *, without: Sequence[str] = ()) -> None:
    """Every setting of EngineConfig but the model, which is a word of its own."""
    words = {name: entry for name, entry in ENGINE.items() if name not in ("model", *without)}
    _add(parser.add_argument_group("engine"), EngineConfig, words, {})


def add_sampling(parser: argparse.ArgumentParser) -> None:
    _add(parser.add_argument_group("sampling"), SamplingParams, SAMPLING, SAMPLING_DEFAULTS)


def add_server(parser: argparse.ArgumentParser) -> None:
    from engine.server.options import ServerOptions

    _add(parser.add_argument_group("server"), ServerOptions, SERVER, {})


def engine_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of EngineConfig that the user gave."""
    return _given(arguments, ENGINE)


def sampling_params(arguments: argparse.Namespace) -> SamplingParams:
    """Raises RequestError where a value is out of range."""
    return SamplingParams(**{**SAMPLING_DEFAULTS, **_given(arguments, SAMPLING)})


def server_options(arguments: argparse.Namespace) -> "ServerOptions":
    """Raises ConfigError where a value is out of range."""
    from engine.server.options import ServerOptions

    return ServerOptions(**_given(arguments, SERVER))


def default_text(owner: type, name: str) -> str:
    """A field's default as the help and the documentation show it."""
    value = next(f.default for f in dataclasses.fields(owner) if f.name == name)
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "unset"
    return "none" if value == () else str(value)


def flag_of(name: str, words: Words) -> str:
    return words.flag or "--" + name.replace("_", "-")


def _add(
    group: "argparse._ArgumentGroup",
    owner: type,
    table: Mapping[str, Words],
    defaults: Mapping[str, Any],
) -> None:
    hints = typing.get_type_hints(owner)
    for name, words in table.items():
        default = str(defaults[name]) if name in defaults else default_text(owner, name)
        default = "unset" if default == "None" else default
        group.add_argument(
            flag_of(name, words),
            dest=name,
            default=argparse.SUPPRESS,
            help=f"{words.help} (default: {default})",
            **_reading(hints[name], words),
        )


def _reading(hint: Any, words: Words) -> dict[str, Any]:
    """argparse's arguments that read a value of the field's type."""
    members = [one for one in typing.get_args(hint) if one is not types.NoneType]
    if typing.get_origin(hint) is tuple:
        return {"action": "append", "type": members[0], "metavar": words.metavar or None}
    kind = members[0] if isinstance(hint, types.UnionType) else hint
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if words.choices:
        return {"choices": words.choices}
    return {"type": kind, "metavar": words.metavar or kind.__name__.upper()}


def _given(arguments: argparse.Namespace, table: Mapping[str, Words]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(arguments).items()
        if name in table
    }
