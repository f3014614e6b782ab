"""From submissions to pieces of text: what completions and chat have in common.

    Submission ─→ engine ─→ Delta (tokens) ─→ Generation ─→ Piece (text) ─→ an endpoint's answer

All choices of an HTTP request come out of one iterator, in the order in which they progress.
Closing the run aborts whatever is unfinished: that is all a client's leaving takes.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from engine.client import DeltaStream
from engine.errors import EngineDeadError, EngineError
from engine.request import Finish, Submission
from engine.server.metrics import Watch, count_prompt
from engine.server.openai.errors import from_engine, unavailable
from engine.server.openai.responses import PromptDetails, Usage
from engine.server.service import Service
from engine.text import Generation, Piece


class Run:
    """The submissions of one HTTP request, all of them accepted by the engine."""

    def __init__(self, service: Service, submissions: Sequence[Submission], arrived: float) -> None:
        tokenizer = service.tokenizer
        eos = service.facts.model.eos_token_ids
        self._service = service
        self._streams: dict[int, DeltaStream] = {}  # by prompt, once accepted
        self.submissions = tuple(submissions)
        self.generations = [Generation(each, tokenizer, eos) for each in submissions]
        self._watches = [
            [Watch(service.metrics, arrived) for _ in range(each.params.n)] for each in submissions
        ]
        self._num_waiting = sum(each.params.n for each in submissions)
        self._outcome = "abort"  # of choices that have none when the run is closed
        service.num_waiting += self._num_waiting

    @classmethod
    async def start(cls, service: Service, submissions: Sequence[Submission]) -> "Run":
        """Hand everything to the engine, and wait until it has accepted it.

        Raises:
            RequestError, CapacityError: the engine refused one; none of them runs then.
            HttpError: 503, the engine is gone, or takes no more.
        """
        run = cls(service, submissions, time.monotonic())
        try:
            found = await asyncio.gather(
                *(run._submit(prompt) for prompt in range(len(submissions))), return_exceptions=True
            )
            for error in found:
                if error is not None:
                    run._outcome = "error"
                    raise error
        except EngineDeadError:
            await run.aclose()
            raise unavailable(service.unhealthy or "The engine takes no requests") from None
        except BaseException:
            await run.aclose()
            raise
        return run

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        """(choice, piece), choices numbered over all prompts: prompt * n + index.

        Raises:
            HttpError: the engine failed on one choice, or stopped; all of them end.
        """
        sources = [self._of_one(prompt) for prompt in range(len(self.submissions))]
        async with aclosing(sources[0] if len(sources) == 1 else _merged(sources)) as pieces:
            try:
                async for choice, piece in pieces:
                    if piece.finish is Finish.ERROR:
                        raise EngineError(piece.error or "it gave no reason")
                    if piece.finish is Finish.ABORT:
                        raise unavailable("The server shut down before this request was finished")
                    yield choice, piece
            except EngineError as error:
                self._outcome = "error"
                raise from_engine(error) from error

    async def aclose(self) -> None:
        """Abort what is unfinished. Safe to call twice."""
        for stream in self._streams.values():
            await stream.aclose()
        for watches in self._watches:
            for watch in watches:
                watch.end(self._outcome)
        self._service.num_waiting -= self._num_waiting
        self._num_waiting = 0

    def usage(self) -> Usage:
        """As far as the run has come. Cached tokens are told once the engine has told them all."""
        prompt = sum(len(each.prompt) for each in self.submissions)
        output = sum(each.num_output for each in self.generations)
        usage = Usage(prompt, output, prompt + output)
        firsts = [each.summaries[0].num_cached for each in self.generations if 0 in each.summaries]
        if len(firsts) == len(self.generations):
            usage.prompt_tokens_details = PromptDetails(sum(firsts))
        return usage

    async def _submit(self, prompt: int) -> None:
        submission = self.submissions[prompt]
        self._streams[prompt] = await self._service.engine.submit(submission)
        count_prompt(self._service.metrics, len(submission.prompt), submission.params)

    async def _of_one(self, prompt: int) -> AsyncGenerator[tuple[int, Piece], None]:
        generation, watches = self.generations[prompt], self._watches[prompt]
        first_choice = prompt * len(watches)
        async for delta in self._streams[prompt]:
            piece = generation.push(delta)
            if piece is None:
                continue
            self._measure(watches[piece.index], piece, generation)
            yield first_choice + piece.index, piece
            if generation.done:
                break
        await self._streams[prompt].aclose()  # stop strings end a choice, the engine runs on

    def _measure(self, watch: Watch, piece: Piece, generation: Generation) -> None:
        if piece.token_ids:
            if not watch.num_tokens:
                self._num_waiting -= 1
                self._service.num_waiting -= 1
            watch.tokens(len(piece.token_ids))
        if piece.finish is not None:
            watch.end(piece.finish.value, generation.summaries.get(piece.index))


async def _merged(
    sources: Sequence[AsyncGenerator[tuple[int, Piece], None]],
) -> AsyncGenerator[tuple[int, Piece], None]:
    """All sources at once; the first one that fails ends them all."""
    queue: asyncio.Queue[tuple[int, Piece] | Exception | None] = asyncio.Queue()

    async def pump(source: AsyncGenerator[tuple[int, Piece], None]) -> None:
        try:
            async with aclosing(source):
                async for item in source:
                    queue.put_nowait(item)
        except Exception as error:
            queue.put_nowait(error)
        else:
            queue.put_nowait(None)

    tasks = [asyncio.create_task(pump(source)) for source in sources]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
