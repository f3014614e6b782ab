"""POST /v1/chat/completions."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

from msgspec import UNSET
from starlette.responses import Response
from starlette.types import Receive

from engine.batch import Logprobs
from engine.errors import RequestError
from engine.request import Submission
from engine.server.openai.conversation import read_messages, read_template_arguments, read_tools
from engine.server.openai.errors import HttpError
from engine.server.openai.identity import SYSTEM_FINGERPRINT, response_id
from engine.server.openai.json import json_response
from engine.server.openai.logprobs import TokenNames, chat_logprobs, prompt_logprobs
from engine.server.openai.parameters import chat_params
from engine.server.openai.refused import refuse_unsupported
from engine.server.openai.requests import ChatRequest, TokenizeRequest
from engine.server.openai.responses import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ChatResponse,
)
from engine.server.running import Run
from engine.server.service import Service
from engine.server.sse import DONE, EventStream, event, unless_disconnected
from engine.text import Piece


async def chat(service: Service, request: ChatRequest, receive: Receive) -> Response:
    """The whole answer, or a stream that has been accepted.

    Raises:
        RequestError, HttpError: the request is not valid, or could not be served.
        ClientLeftError: the client left before there was an answer.
    """
    model = service.check_model(request.model)
    id = response_id("chatcmpl", request.request_id)
    submissions = await _submissions(service, request)
    service.check_open()
    run = await unless_disconnected(receive, Run.start(service, submissions))
    answer = _Answer(service, request, run, id, model)
    if request.stream:
        return EventStream(answer.events(), run)
    async with aclosing(run):
        return json_response(await unless_disconnected(receive, answer.whole()))


async def chat_tokens(service: Service, request: ChatRequest | TokenizeRequest) -> list[int]:
    """The prompt that the chat template makes of a request's messages.

    Raises:
        RequestError: messages, tools or template arguments are not valid.
    """
    if service.tokenizer is None:
        raise RequestError("This model has no tokenizer: send token ids to /v1/completions")
    add, continued = request.add_generation_prompt, bool(request.continue_final_message)
    if add and continued:
        raise RequestError(
            "continue_final_message and add_generation_prompt exclude each other",
            "continue_final_message",
        )
    messages = read_messages(request.messages)
    arguments = read_template_arguments(request.chat_template_kwargs)
    choice = None
    if isinstance(request, ChatRequest):
        choice = request.tool_choice
        if request.reasoning_effort is not None:
            arguments.setdefault("reasoning_effort", request.reasoning_effort)
        if request.documents is not None:
            arguments["documents"] = request.documents
    work = partial(
        service.tokenizer.chat,
        messages,
        tools=read_tools(request.tools, choice),
        add_generation_prompt=not continued if add is None else add,
        continue_final_message=continued,
        template=service.template,
        **arguments,
    )
    return await service.tokenize(sum(len(each["content"]) for each in messages), work)


async def _submissions(service: Service, request: ChatRequest) -> list[Submission]:
    refuse_unsupported(request)
    params = chat_params(request, service.facts.model.vocab_size)
    return await service.prepare([await chat_tokens(service, request)], params, request)


class _Answer:
    """Of one accepted request, whole or streamed."""

    def __init__(
        self, service: Service, request: ChatRequest, run: Run, id: str, model: str
    ) -> None:
        self._request = request
        self._run = run
        self._names = TokenNames(service.tokenizer, as_ids=bool(request.return_tokens_as_token_ids))
        self._id = id
        self._created = int(time.time())
        self._model = model
        self._n = run.submissions[0].params.n

    async def whole(self) -> ChatResponse:
        texts: list[list[str]] = [[] for _ in range(self._n)]
        tokens: list[list[int]] = [[] for _ in range(self._n)]
        logprobs: list[list[Logprobs]] = [[] for _ in range(self._n)]
        ends: dict[int, Piece] = {}
        of_prompt: list[Logprobs] = []
        async with aclosing(self._run.pieces()) as pieces:
            async for choice, piece in pieces:
                texts[choice].append(piece.text)
                tokens[choice].extend(piece.token_ids)
                logprobs[choice].extend(piece.logprobs)
                of_prompt.extend(piece.prompt_logprobs)
                if piece.finish is not None:
                    ends[choice] = piece
        response = ChatResponse(
            self._id,
            self._created,
            self._model,
            [
                ChatChoice(
                    choice,
                    ChatMessage("".join(texts[choice])),
                    self._logprobs(logprobs[choice]),
                    _reason(ends[choice]),
                    ends[choice].stop,
                    tokens[choice] if self._request.return_token_ids else UNSET,
                )
                for choice in range(self._n)
            ],
            self._run.usage(),
            SYSTEM_FINGERPRINT,
        )
        if self._request.return_token_ids:
            response.prompt_token_ids = list(self._run.submissions[0].prompt)
        if self._request.prompt_logprobs is not None:
            response.prompt_logprobs = prompt_logprobs(of_prompt, self._names)
        return response

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Every choice begins with its role, and ends with its finish_reason."""
        options = self._request.stream_options
        with_usage = options is not None and bool(options.include_usage)
        begun = False
        try:
            async with aclosing(self._run.pieces()) as pieces:
                async for choice, piece in pieces:
                    chunk = self._chunk(choice, piece)
                    if chunk is None:
                        continue
                    if not begun:  # not earlier: clients take the first event for the first token
                        begun = True
                        yield b"".join(event(self._first_chunk(each)) for each in range(self._n))
                    yield event(chunk)
        except HttpError as error:
            yield event(error.body())
            return
        if with_usage:
            last = self._new_chunk([])
            last.usage = self._run.usage()
            yield event(last)
        yield DONE

    def _first_chunk(self, choice: int) -> ChatChunk:
        chunk = self._new_chunk([ChatChunkChoice(choice, ChatDelta("assistant", ""))])
        if self._request.return_token_ids:
            chunk.prompt_token_ids = list(self._run.submissions[0].prompt)
        return chunk

    def _chunk(self, choice: int, piece: Piece) -> ChatChunk | None:
        """None where there is nothing to see: held-back text, or a chunk of the prompt computed."""
        logprobs = self._logprobs(piece.logprobs) if piece.logprobs else None
        with_ids = self._request.return_token_ids and piece.token_ids
        if not (piece.text or piece.finish or logprobs or with_ids):
            return None
        delta = ChatDelta(content=piece.text) if piece.text else ChatDelta()
        one = ChatChunkChoice(choice, delta, logprobs, _reason(piece))
        if piece.stop is not None:
            one.stop_reason = piece.stop
        if with_ids:
            one.token_ids = list(piece.token_ids)
        return self._new_chunk([one])

    def _new_chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        chunk = ChatChunk(self._id, self._created, self._model, choices, SYSTEM_FINGERPRINT)
        options = self._request.stream_options
        if options is not None and options.include_usage:
            chunk.usage = self._run.usage() if options.continuous_usage_stats else None
        return chunk

    def _logprobs(self, entries: "list[Logprobs] | tuple[Logprobs, ...]") -> ChatLogprobs | None:
        if not self._request.logprobs:
            return None
        return chat_logprobs(entries, self._request.top_logprobs or 0, self._names)


def _reason(piece: Piece) -> str | None:
    return None if piece.finish is None else piece.finish.value
