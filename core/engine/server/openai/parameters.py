"""From a request's fields to `SamplingParams`; one order, one name, for both endpoints."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from engine.errors import RequestError
from engine.params import MAX_LOGPROBS, SamplingParams
from engine.server.openai.requests import ChatRequest, CompletionRequest, GenerationRequest

T = TypeVar("T")

MAX_STOPS = 64  # stop strings and bad words of one request; OpenAI allows 4, vLLM 4 by default
MAX_STOP_LENGTH = 2048  # characters

COMPLETION_MAX_TOKENS = 16  # the API's default


def completion_params(request: CompletionRequest, vocab_size: int) -> SamplingParams:
    """`echo` with logprobs asks for the prompt's too; with `max_tokens` 0 for nothing else.

    The engine always samples one token, so that last case is asked for as one token, and the
    answer drops it (`wants_no_tokens`). Without `max_tokens` the limit stays open here: it
    depends on the prompt's length (`completion_limit`).

    Raises:
        RequestError: a value is out of range; `parameter` names the field.
    """
    max_tokens = request.max_tokens
    prompt_logprobs = request.prompt_logprobs
    if request.echo and request.logprobs is not None and prompt_logprobs is None:
        prompt_logprobs = request.logprobs
    if wants_no_tokens(request):
        max_tokens = 1
    return _params(request, max_tokens, request.logprobs, prompt_logprobs, vocab_size)


def wants_no_tokens(request: CompletionRequest) -> bool:
    """The prompt is to be shown, and scored, and nothing to be written."""
    return bool(request.echo) and request.max_tokens == 0


def completion_limit(params: SamplingParams, room: int) -> SamplingParams:
    """With the API's default number of tokens where none was asked for, or less if `room` is."""
    if params.max_tokens is not None:
        return params
    limit = max(min(COMPLETION_MAX_TOKENS, room), params.min_tokens)
    return replace(params, max_tokens=limit)


def chat_params(request: ChatRequest, vocab_size: int) -> SamplingParams:
    """No limit on tokens means: up to the context's end.

    Raises:
        RequestError: a value is out of range; `parameter` names the field.
    """
    limit = request.max_completion_tokens
    max_tokens = limit if limit is not None else request.max_tokens
    if request.top_logprobs is not None and not request.logprobs:
        raise RequestError("top_logprobs needs logprobs to be true", "top_logprobs")
    if request.top_logprobs is not None and not 0 <= request.top_logprobs <= MAX_LOGPROBS:
        raise RequestError(f"top_logprobs must be from 0 to {MAX_LOGPROBS}", "top_logprobs")
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    return _params(request, max_tokens, logprobs, request.prompt_logprobs, vocab_size)


def _params(
    request: GenerationRequest,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None,
    vocab_size: int,
) -> SamplingParams:
    _check_stream(request)
    stop = _strings("stop", [request.stop] if isinstance(request.stop, str) else request.stop)
    if request.temperature is not None and request.temperature > 2:
        raise RequestError(
            f"temperature must be from 0 to 2, got {request.temperature}", "temperature"
        )
    top_k = _given(request.top_k, 0)
    return SamplingParams(
        n=_given(request.n, 1),
        temperature=_given(request.temperature, 1.0),
        top_p=_given(request.top_p, 1.0),
        top_k=0 if top_k >= vocab_size else top_k,  # all of them is no limit
        min_p=_given(request.min_p, 0.0),
        repetition_penalty=_given(request.repetition_penalty, 1.0),
        presence_penalty=_given(request.presence_penalty, 0.0),
        frequency_penalty=_given(request.frequency_penalty, 0.0),
        logit_bias=request.logit_bias or {},
        allowed_token_ids=_tuple_or_none(request.allowed_token_ids),
        bad_words=_strings("bad_words", request.bad_words),
        seed=request.seed,
        max_tokens=max_tokens,
        min_tokens=_given(request.min_tokens, 0),
        stop=stop,
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=bool(request.ignore_eos),
        include_stop_str_in_output=bool(request.include_stop_str_in_output),
        skip_special_tokens=request.skip_special_tokens is not False,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def _check_stream(request: GenerationRequest) -> None:
    if request.stream_options is not None and not request.stream:
        raise RequestError("stream_options needs stream to be true", "stream_options")
    if request.stream and request.prompt_logprobs is not None:
        raise RequestError("prompt_logprobs cannot be streamed", "prompt_logprobs")


def _strings(name: str, texts: Iterable[str] | None) -> tuple[str, ...]:
    found = tuple(texts or ())
    if len(found) > MAX_STOPS:
        raise RequestError(f"{name} may have at most {MAX_STOPS} strings, got {len(found)}", name)
    if any(not text or len(text) > MAX_STOP_LENGTH for text in found):
        raise RequestError(
            f"{name}: a string must have from 1 to {MAX_STOP_LENGTH} characters", name
        )
    return found


def _given(value: T | None, default: T) -> T:
    return default if value is None else value


def _tuple_or_none(ids: list[int] | None) -> tuple[int, ...] | None:
    return None if ids is None else tuple(ids)
