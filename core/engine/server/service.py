"""What every route works with: the engine, the tokenizer, and whether the server is open."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from engine.client import AsyncEngine
from engine.errors import RequestError
from engine.facts import EngineFacts
from engine.params import SamplingParams
from engine.request import Submission
from engine.server.metrics import Metrics
from engine.server.openai.errors import HttpError, overloaded, unavailable
from engine.server.openai.requests import GenerationRequest
from engine.server.options import ServerOptions
from engine.text import Tokenizer, prepare

T = TypeVar("T")

#: Texts longer than this, in characters, are tokenized beside the event loop (about 5 ms).
LONG_TEXT: Final = 16_384


class Service:
    """One server. `tokenizer` is None for a model without one: it speaks token ids only."""

    def __init__(
        self,
        engine: AsyncEngine,
        tokenizer: Tokenizer | None,
        options: ServerOptions,
        *,
        template: str | None = None,
    ) -> None:
        self.engine = engine
        self.options = options
        self.model_names = options.served_model_names or (engine.facts.model.name,)
        self.metrics = Metrics(self.model_names[0], engine.facts, lambda: engine.stats)
        self.created = int(time.time())
        self.num_waiting = 0  # continuations that wait for their first token
        self.draining = False
        self.tokenizer = tokenizer
        self.template = template
        engine.on_stats = self.metrics.count_step
        self._tokenizing = ThreadPoolExecutor(1, "tokenizing")  # one: long texts queue, short pass

    @property
    def facts(self) -> EngineFacts:
        return self.engine.facts

    @property
    def unhealthy(self) -> str | None:
        """Why this server takes no requests, or None when it does."""
        if self.engine.died is not None:
            return "The engine process ended; this server cannot answer any more"
        if self.draining:
            return "This server is shutting down"
        return None

    def check_open(self) -> None:
        """Raises HttpError 503 where no request is taken, 429 where too many wait."""
        if (reason := self.unhealthy) is not None:
            raise unavailable(reason)
        limit = self.options.max_queue
        if limit is not None and self.num_waiting >= limit:
            raise overloaded(f"{self.num_waiting} requests are waiting already; try again later")

    def check_model(self, name: str | None) -> str:
        """The name to answer with; an absent one means the model that is served.

        Raises:
            HttpError: 404, another model was asked for.
        """
        if name is None or name in self.model_names:
            return name or self.model_names[0]
        raise HttpError(
            404,
            f"The model {name[:100]!r} does not exist here; served is "
            + ", ".join(self.model_names),
            parameter="model",
            code="model_not_found",
        )

    async def tokenize(self, num_characters: int, work: Callable[[], T]) -> T:
        """The result of `work`, which takes time in proportion to `num_characters`."""
        if num_characters <= LONG_TEXT:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, work)

    async def prepare(
        self,
        prompts: Sequence[str | list[int]],
        params: SamplingParams,
        request: GenerationRequest,
    ) -> list[Submission]:
        """One submission for each prompt.

        Raises:
            RequestError: a prompt is empty, too long, or not of this model's vocabulary.
        """
        size = sum(len(prompt) for prompt in prompts if isinstance(prompt, str))
        return await self.tokenize(
            size, lambda: [self._prepare(prompt, params, request) for prompt in prompts]
        )

    def close(self) -> None:
        self._tokenizing.shutdown(wait=False, cancel_futures=True)

    def _prepare(
        self, prompt: str | list[int], params: SamplingParams, request: GenerationRequest
    ) -> Submission:
        if request.truncate_prompt_tokens is not None:
            prompt = self._truncated(prompt, params, request)
        return prepare(
            prompt,
            params,
            facts=self.facts,
            tokenizer=self.tokenizer,
            priority=request.priority or 0,
            cache_salt=request.cache_salt or "",
            add_special_tokens=request.add_special_tokens is not False,
        )

    def _truncated(
        self, prompt: str | list[int], params: SamplingParams, request: GenerationRequest
    ) -> list[int]:
        """The last tokens of the prompt; -1: as many as leave room for the output."""
        count = request.truncate_prompt_tokens
        if count == -1:
            count = self.facts.max_model_len - (params.max_tokens or 1)
        if count is None or count < 1:
            raise RequestError(
                "truncate_prompt_tokens must be at least 1, or -1: what fits the context",
                "truncate_prompt_tokens",
            )
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise RequestError("This model has no tokenizer: send token ids", "prompt")
            special = request.add_special_tokens is not False
            prompt = self.tokenizer.encode(prompt, add_special_tokens=special)
        return prompt[-count:]
