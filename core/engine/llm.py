"""The engine for programs: `LLM` in this process, `AsyncLLM` with an engine process beside it."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any

from engine.client import AsyncEngine, DeltaStream, InProcessEngine
from engine.client.target import ASSEMBLE
from engine.errors import RequestError
from engine.facts import EngineFacts, Stats
from engine.params import SamplingParams
from engine.request import Delta
from engine.text.generation import Piece
from engine.text.intake import Conversations, Intake, Params, Prompt, Tools, numbered
from engine.text.output import CompletionOutput, OutputBuilder, RequestOutput
from engine.text.tokenizer import Tokenizer

__all__ = ["LLM", "AsyncLLM", "CompletionOutput", "Piece", "RequestOutput"]


class LLM:
    """An engine in this process. It belongs to one thread.

    with LLM(model="path/of/a/model") as llm:
        for output in llm.generate(["Once upon a time"], SamplingParams(max_tokens=32)):
            print(output.outputs[0].text)
    """

    def __init__(
        self,
        model: str = "embedded",
        device: str = "auto",
        *,
        target: str = ASSEMBLE,
        **settings: Any,
    ) -> None:
        """`settings` are `EngineConfig`'s fields; `target` names what makes the engine of them.

        Nobody waits for the next token of a list of prompts, so `step_target_s` is 0 unless it is
        among them.

        Raises:
            EngineError: it cannot be started: ModelError, ConfigError and others.
        """
        settings = {"model": model, "device": device, "step_target_s": 0.0, **settings}
        self._engine = InProcessEngine.start(settings, target=target)
        self._inboxes: dict[str, deque[Delta]] = {}
        try:
            tokenizer = _find_tokenizer(self._engine.facts, settings)
        except BaseException:
            self._engine.close()
            raise
        self._intake = Intake(self._engine.facts, tokenizer)

    @property
    def facts(self) -> EngineFacts:
        return self._engine.facts

    @property
    def stats(self) -> Stats:
        """Gauges and running totals: requests, KV blocks, preemptions, prefix hits."""
        return self._engine.stats

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None for a model without one: it takes and gives token ids only."""
        return self._intake.tokenizer

    def generate(
        self, prompts: Prompt | list[Prompt], params: Params = None, *, progress: bool = False
    ) -> list[RequestOutput]:
        """Continue every prompt; the outputs come in the prompts' order.

        `progress` shows a bar. A request that fails on the way has "error" as its finish reason.

        Raises:
            RequestError: a prompt or its parameters cannot be served; nothing was computed then,
                and the message names the prompt's index.
        """
        return self._complete(self._intake.prompts(prompts, params), progress)

    def chat(
        self,
        messages: Conversations,
        params: Params = None,
        *,
        tools: Tools = None,
        progress: bool = False,
        **template_options: Any,
    ) -> list[RequestOutput]:
        """Answer every conversation; without `params`, until the model ends its turn.

        `template_options` are those of `Tokenizer.chat`, and what else the model's template knows.

        Raises:
            RequestError: as for `generate`; also where the model has no chat template.
        """
        builders = self._intake.conversations(messages, params, tools, template_options)
        return self._complete(builders, progress)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Piece]:
        """The continuation of one prompt as it is computed. To close the iterator ends it.

        Raises:
            RequestError: the prompt or its parameters cannot be served.
        """
        [builder] = self._intake.prompts([prompt], params)  # raises here, not at the first piece
        return self._pieces(builder)

    def close(self) -> None:
        """Give memory and device back. May be called twice."""
        self._engine.close()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _complete(self, builders: list[OutputBuilder], progress: bool) -> list[RequestOutput]:
        by_id = {builder.submission.id: builder for builder in builders}
        with _bar(len(builders), progress) as advance, closing(self._deltas(builders)) as deltas:
            for delta in deltas:
                builder = by_id[delta.id]
                was_done = builder.generation.done
                builder.push(delta)
                self._abort_stopped(builder)
                advance(builder.generation.done and not was_done)
        return [builder.result() for builder in builders]

    def _pieces(self, builder: OutputBuilder) -> Iterator[Piece]:
        with closing(self._deltas([builder])) as deltas:
            for delta in deltas:
                piece = builder.generation.push(delta)
                self._abort_stopped(builder)
                if piece is not None:
                    yield piece

    def _deltas(self, builders: list[OutputBuilder]) -> Generator[Delta, None, None]:
        """Submit all and yield what comes, until every choice of theirs finished."""
        inbox: deque[Delta] = deque()
        num_open = sum(builder.submission.params.n for builder in builders)
        try:
            self._submit(builders, inbox)
            while num_open:
                if not inbox:
                    self._distribute(self._engine.step())
                while inbox:
                    delta = inbox.popleft()
                    num_open -= delta.finish is not None
                    yield delta
        finally:
            for builder in builders:
                if self._inboxes.pop(builder.submission.id, None) is not None and num_open:
                    self._engine.abort(builder.submission.id)

    def _submit(self, builders: list[OutputBuilder], inbox: deque[Delta]) -> None:
        for index, builder in enumerate(builders):
            try:
                self._engine.submit(builder.submission)
            except RequestError as error:
                raise numbered(error, index, len(builders)) from error
            self._inboxes[builder.submission.id] = inbox

    def _distribute(self, deltas: list[Delta]) -> None:
        """To whom they belong: several streams may be open, and whoever reads computes for all."""
        for delta in deltas:
            if (inbox := self._inboxes.get(delta.id)) is not None:
                inbox.append(delta)

    def _abort_stopped(self, builder: OutputBuilder) -> None:
        if builder.generation.stopped:
            self._distribute(self._engine.abort(builder.submission.id))


class AsyncLLM:
    """An engine in a process of its own; this process only handles text. Made by `start`.

    async with await AsyncLLM.start(model="path/of/a/model") as llm:
        async for piece in llm.stream("Once upon a time"):
            print(piece.text, end="", flush=True)
    """

    def __init__(self, engine: AsyncEngine, tokenizer: Tokenizer | None) -> None:
        self.engine = engine
        self._intake = Intake(engine.facts, tokenizer)

    @classmethod
    async def start(
        cls,
        model: str = "embedded",
        device: str = "auto",
        *,
        target: str = ASSEMBLE,
        on_log: Callable[[str], None] | None = None,
        **settings: Any,
    ) -> "AsyncLLM":
        """As for `LLM`; `on_log` gets the engine process's output, line by line.

        Raises:
            EngineError: it cannot be started: ModelError, ConfigError and others.
        """
        settings = {"model": model, "device": device, **settings}
        engine = await AsyncEngine.start(settings, target=target, on_log=on_log)
        try:
            tokenizer = await asyncio.to_thread(_find_tokenizer, engine.facts, settings)
        except BaseException:
            await engine.close()
            raise
        return cls(engine, tokenizer)

    @property
    def facts(self) -> EngineFacts:
        return self.engine.facts

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None for a model without one: it takes and gives token ids only."""
        return self._intake.tokenizer

    async def generate(
        self, prompts: Prompt | list[Prompt], params: Params = None
    ) -> list[RequestOutput]:
        """As `LLM.generate`.

        Raises:
            RequestError: as there.
            EngineDeadError: the engine process ended.
        """
        return await self._complete(await asyncio.to_thread(self._intake.prompts, prompts, params))

    async def chat(
        self,
        messages: Conversations,
        params: Params = None,
        *,
        tools: Tools = None,
        **template_options: Any,
    ) -> list[RequestOutput]:
        """As `LLM.chat`; raises what `generate` does."""
        builders = await asyncio.to_thread(
            self._intake.conversations, messages, params, tools, template_options
        )
        return await self._complete(builders)

    async def stream(
        self, prompt: Prompt, params: SamplingParams | None = None
    ) -> AsyncIterator[Piece]:
        """As `LLM.stream`; raises what `generate` does, before the first piece or between two."""
        [builder] = await asyncio.to_thread(self._intake.prompts, [prompt], params)
        async with await self.engine.submit(builder.submission) as deltas:
            async for delta in deltas:
                if (piece := builder.generation.push(delta)) is not None:
                    yield piece
                if builder.generation.done:
                    return

    async def close(self) -> None:
        """End the engine process. May be called twice."""
        await self.engine.close()

    async def __aenter__(self) -> "AsyncLLM":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _complete(self, builders: list[OutputBuilder]) -> list[RequestOutput]:
        streams = await self._submit(builders)
        try:
            pairs = zip(builders, streams, strict=True)
            await asyncio.gather(*(self._collect(builder, stream) for builder, stream in pairs))
        finally:
            for stream in streams:
                await stream.aclose()
        return [builder.result() for builder in builders]

    async def _submit(self, builders: list[OutputBuilder]) -> list[DeltaStream]:
        """All of them, or none."""
        tasks = [asyncio.create_task(self.engine.submit(each.submission)) for each in builders]
        try:
            for index, task in enumerate(tasks):
                try:
                    await task
                except RequestError as error:
                    raise numbered(error, index, len(tasks)) from error
        except BaseException:
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, DeltaStream):
                    await result.aclose()
            raise
        return [task.result() for task in tasks]

    async def _collect(self, builder: OutputBuilder, stream: DeltaStream) -> None:
        async for delta in stream:
            builder.push(delta)
            if builder.generation.stopped:
                self.engine.abort(builder.submission.id)


def _find_tokenizer(facts: EngineFacts, settings: dict[str, Any]) -> Tokenizer | None:
    trust = bool(settings.get("trust_remote_code", False))
    return Tokenizer.find(facts.model.path, trust_remote_code=trust)


@contextmanager
def _bar(total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar over so many prompts, if it is to be shown; yields what advances it."""
    if not shown:
        yield lambda count: None
        return
    from rich.progress import Progress

    with Progress() as progress:
        task = progress.add_task("prompts", total=total)
        yield lambda count: progress.advance(task, count)
