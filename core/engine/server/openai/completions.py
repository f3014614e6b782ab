"""POST /v1/completions."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from msgspec import UNSET
from starlette.responses import Response
from starlette.types import Receive

from engine.batch import Logprobs
from engine.errors import RequestError
from engine.params import SamplingParams
from engine.request import Finish
from engine.server.openai.errors import HttpError
from engine.server.openai.identity import SYSTEM_FINGERPRINT, response_id
from engine.server.openai.json import convert, json_response
from engine.server.openai.logprobs import (
    CompletionLogprobsWriter,
    TokenNames,
    joined,
    prompt_logprobs,
)
from engine.server.openai.parameters import completion_limit, completion_params, wants_no_tokens
from engine.server.openai.refused import refuse_unsupported
from engine.server.openai.requests import CompletionRequest
from engine.server.openai.responses import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Usage,
)
from engine.server.running import Run
from engine.server.service import Service
from engine.server.sse import DONE, EventStream, event, unless_disconnected
from engine.text import Piece

MAX_PROMPTS = 2048  # of one request
MAX_CHOICES = 8192  # of one request: prompts times n


async def complete(service: Service, request: CompletionRequest, receive: Receive) -> Response:
    """The whole answer, or a stream that has been accepted.

    Raises:
        RequestError, HttpError: the request is not valid, or could not be served.
        ClientLeftError: the client left before there was an answer.
    """
    model = service.check_model(request.model)
    id = response_id("cmpl", request.request_id)
    refuse_unsupported(request)
    params = completion_params(request, service.facts.model.vocab_size)
    prompts, limit = read_prompts(request.prompt), service.facts.max_model_len
    _check_size(request, params, len(prompts))
    submissions = [
        replace(each, params=completion_limit(each.params, limit - len(each.prompt)))
        for each in await service.prepare(prompts, params, request)
    ]
    service.check_open()
    run = await unless_disconnected(receive, Run.start(service, submissions))
    answer = _Answer(service, request, run, prompts, id, model)
    if request.stream:
        return EventStream(answer.events(), run)
    async with aclosing(run):
        return json_response(await unless_disconnected(receive, answer.whole()))


def read_prompts(prompt: Any) -> list[str | list[int]]:
    """A text, a list of texts, token ids, or a list of lists of token ids.

    Raises:
        RequestError: it is none of them.
    """
    match prompt:
        case str():
            return [prompt]
        case [str(), *_]:
            found = convert(prompt, list[str], "prompt")
        case [int(), *_]:
            found = [convert(prompt, list[int], "prompt")]
        case [list(), *_]:
            found = convert(prompt, list[list[int]], "prompt")
        case None:
            raise RequestError("prompt is required", "prompt")
        case _:
            raise RequestError(
                "prompt must be a text, a list of texts, a list of token ids, or a list of such "
                "lists, and not empty",
                "prompt",
            )
    if len(found) > MAX_PROMPTS:
        raise RequestError(f"prompt may have at most {MAX_PROMPTS} prompts", "prompt")
    return list(found)


def _check_size(request: CompletionRequest, params: SamplingParams, num_prompts: int) -> None:
    if num_prompts * params.n > MAX_CHOICES:
        raise RequestError(f"prompts times n may be at most {MAX_CHOICES}", "n")
    if request.stream and params.prompt_logprobs is not None and params.n > 1:
        raise RequestError("echo with logprobs can be streamed for n = 1 only", "n")


class _Choice:
    """One choice of the answer while it comes together, piece by piece."""

    def __init__(self, writer: CompletionLogprobsWriter | None) -> None:
        self.writer = writer
        self.texts: list[str] = []
        self.tokens: list[int] = []
        self.logprobs: list[Logprobs] = []
        self.end: Piece | None = None
        self.echoed = False


class _Answer:
    """Of one accepted request, whole or streamed."""

    def __init__(
        self,
        service: Service,
        request: CompletionRequest,
        run: Run,
        prompts: Sequence[str | list[int]],
        id: str,
        model: str,
    ) -> None:
        self._service = service
        self._request = request
        self._run = run
        self._prompts = prompts
        self._names = TokenNames(service.tokenizer, as_ids=bool(request.return_tokens_as_token_ids))
        self._id = id
        self._created = int(time.time())
        self._model = model
        self._n = run.submissions[0].params.n
        self._with_ids = bool(request.return_token_ids) or service.tokenizer is None
        self._shows_output = not wants_no_tokens(request)
        self._choices = [
            _Choice(
                None
                if request.logprobs is None
                else CompletionLogprobsWriter(request.logprobs, self._names)
            )
            for _ in range(len(prompts) * self._n)
        ]
        self._of_prompt: list[list[Logprobs]] = [[] for _ in prompts]

    async def whole(self) -> Completion:
        async with aclosing(self._run.pieces()) as pieces:
            async for number, piece in pieces:
                choice = self._choices[number]
                self._of_prompt[number // self._n].extend(piece.prompt_logprobs)
                choice.texts.append(piece.text)
                choice.tokens.extend(piece.token_ids)
                choice.logprobs.extend(piece.logprobs)
                if piece.finish is not None:
                    choice.end = piece
        choices = [self._finished(number) for number in range(len(self._choices))]
        completion = self._completion(choices)
        completion.usage = self._usage()
        return completion

    async def events(self) -> AsyncGenerator[bytes, None]:
        options = self._request.stream_options
        try:
            async with aclosing(self._run.pieces()) as pieces:
                async for number, piece in pieces:
                    self._of_prompt[number // self._n].extend(piece.prompt_logprobs)
                    one = self._streamed(number, piece)
                    if one is None:
                        continue
                    chunk = self._completion([one])
                    if options is not None and options.include_usage:
                        chunk.usage = self._usage() if options.continuous_usage_stats else None
                    yield event(chunk)
        except HttpError as error:
            yield event(error.body())
            return
        if options is not None and options.include_usage:
            last = self._completion([])
            last.usage = self._usage()
            yield event(last)
        yield DONE

    def _finished(self, number: int) -> CompletionChoice:
        choice, prompt = self._choices[number], number // self._n
        assert choice.end is not None, "a run ends when every choice has ended"
        text, logprobs = "", None
        if self._request.echo:
            text, logprobs = self._echo(number)
        if self._shows_output:
            text += "".join(choice.texts)
            if choice.writer is not None:
                output = choice.writer.output(choice.logprobs)
                logprobs = output if logprobs is None else joined(logprobs, output)
        one = CompletionChoice(number, text, logprobs, *self._end(choice.end))
        if self._with_ids:
            one.token_ids = choice.tokens if self._shows_output else []
            one.prompt_token_ids = list(self._run.submissions[prompt].prompt)
        if self._request.prompt_logprobs is not None:
            one.prompt_logprobs = prompt_logprobs(self._of_prompt[prompt], self._names)
        return one

    def _streamed(self, number: int, piece: Piece) -> CompletionChoice | None:
        """None where there is nothing to see: held-back text, or a chunk of the prompt computed."""
        choice = self._choices[number]
        if not (piece.token_ids or piece.finish):
            return None
        first = not choice.echoed
        choice.echoed = True
        text, logprobs = self._echo(number) if first and self._request.echo else ("", None)
        if self._shows_output:
            text += piece.text
            if choice.writer is not None and piece.logprobs:
                output = choice.writer.output(piece.logprobs)
                logprobs = output if logprobs is None else joined(logprobs, output)
        reason, stop = self._end(piece)
        if not (text or logprobs or reason or self._with_ids):
            return None
        one = CompletionChoice(number, text, logprobs, reason, stop)
        if self._with_ids:
            one.token_ids = list(piece.token_ids) if self._shows_output else []
            one.prompt_token_ids = (
                list(self._run.submissions[number // self._n].prompt) if first else UNSET
            )
        return one

    def _echo(self, number: int) -> tuple[str, CompletionLogprobs | None]:
        """The prompt as it was sent, or as its tokens read, and its logprobs where asked for."""
        index, writer = number // self._n, self._choices[number].writer
        prompt, tokens = self._prompts[index], self._run.submissions[index].prompt
        tokenizer = self._service.tokenizer
        text = prompt if isinstance(prompt, str) else ""
        if not isinstance(prompt, str) and tokenizer is not None:
            text = tokenizer.decode(tokens, skip_special_tokens=False)
        logprobs = None if writer is None else writer.prompt(tokens, self._of_prompt[index])
        return text, logprobs

    def _end(self, piece: Piece) -> tuple[str | None, int | str | None]:
        if piece.finish is None:
            return None, None
        if not self._shows_output:
            return Finish.LENGTH.value, None
        return piece.finish.value, piece.stop

    def _completion(self, choices: list[CompletionChoice]) -> Completion:
        return Completion(self._id, self._created, self._model, choices, SYSTEM_FINGERPRINT)

    def _usage(self) -> Usage:
        usage = self._run.usage()
        if not self._shows_output:
            usage.completion_tokens, usage.total_tokens = 0, usage.prompt_tokens
        return usage
