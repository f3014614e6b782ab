"""The deltas of one submission, as an asynchronous iterator."""

import asyncio
from collections import deque
from collections.abc import Callable

from engine.errors import EngineDeadError, EngineError
from engine.request import Delta, Submission


class DeltaStream:
    """Ends when all `n` choices are finished. To close it before aborts the submission.

    What has arrived is given out first; after it, `__anext__` raises EngineDeadError if the engine
    died meanwhile.
    """

    def __init__(
        self,
        submission: Submission,
        *,
        abort: Callable[[str], None],
        leave: Callable[["DeltaStream"], None],
    ) -> None:
        self.submission = submission
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._abort = abort  # ask the engine to end the submission
        self._leave = leave  # the engine has no more to say of it
        self._open = set(range(submission.params.n))
        self._deltas: deque[Delta] = deque()
        self._error: EngineDeadError | None = None
        self._closed = False
        self._news = asyncio.Event()

    def __aiter__(self) -> "DeltaStream":
        return self

    async def __anext__(self) -> Delta:
        """The next delta.

        Raises:
            EngineDeadError: the engine died.
        """
        while not self._deltas:
            if self._error is not None and self._open and not self._closed:
                raise self._error
            if not self._open or self._closed:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._deltas.popleft()

    async def __aenter__(self) -> "DeltaStream":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Abort what is unfinished and forget what has arrived. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._deltas.clear()
        self._news.set()
        if self._open and self._error is None:
            self._abort(self.submission.id)

    # For the engine's client:

    def accept(self) -> None:
        if not self.accepted.done():
            self.accepted.set_result(None)

    def refuse(self, error: EngineError) -> None:
        """The engine knows nothing of the submission."""
        self._open.clear()
        self._leave(self)
        if not self.accepted.done():
            self.accepted.set_exception(error)

    def put(self, delta: Delta) -> None:
        if not self._closed:
            self._deltas.append(delta)
        if delta.finish is not None:
            self._open.discard(delta.index)
            if not self._open:
                self._leave(self)
        self._news.set()

    def fail(self, error: EngineDeadError) -> None:
        self._error = error
        self._leave(self)
        if not self.accepted.done():
            self.accepted.set_exception(error)
        self._news.set()
