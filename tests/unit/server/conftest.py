"""A real server on a loopback socket, over an engine that counts: after token n comes n + 1.

The tokenizer's ids 0 to 255 are the bytes, so answers can be read: after "a" comes "bcdef".
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from byte_tokenizer import END, VOCAB_SIZE, write_byte_tokenizer

from engine.batch import Logprobs
from engine.errors import CapacityError, EngineDeadError
from engine.facts import EngineFacts, ModelFacts, Stats
from engine.request import Delta, Finish, Submission, Summary
from engine.server.app import create_app
from engine.server.options import ServerOptions
from engine.server.protocol import BoundedHttpProtocol
from engine.server.service import Service
from engine.text import Tokenizer

CONTEXT = 2048


class CountingEngine:
    """Speaks as `AsyncEngine` does, in this process; one token a choice every `pause_s`."""

    def __init__(self) -> None:
        model = ModelFacts(
            name="counting/model",
            path="",
            architecture="Counting",
            dtype="float32",
            vocab_size=VOCAB_SIZE,
            max_model_len=CONTEXT,
            eos_token_ids=(END,),
        )
        self.facts = EngineFacts(
            model=model,
            platform="null",
            device="null:0",
            dtype="float32",
            max_model_len=CONTEXT,
            block_size=16,
            num_blocks=1000,
            prefix_caching=True,
            ledger="",
        )
        self.pause_s = 0.0
        self.fail_after: int | None = None  # tokens, after which a step fails
        self.on_stats: Callable[[Stats], None] | None = None
        self.died: EngineDeadError | None = None
        self.draining = False
        self.submissions: list[Submission] = []
        self.num_aborted = 0
        self._streams: set[CountingStream] = set()
        self._death = asyncio.Event()

    @property
    def stats(self) -> Stats:
        running = sum(stream.num_open for stream in self._streams)
        held = sum(stream.num_open for stream in self._streams)
        return Stats(num_running=running, num_blocks=1000, num_blocks_held=held)

    async def submit(self, submission: Submission) -> "CountingStream":
        await asyncio.sleep(0)
        if self.died is not None:
            raise self.died
        if self.draining:
            raise EngineDeadError("the engine takes no more requests")
        if len(submission.prompt) > 1900:
            raise CapacityError("the prompt would never fit the cache", "prompt")
        self.submissions.append(submission)
        stream = CountingStream(self, submission)
        self._streams.add(stream)
        return stream

    def die(self) -> None:
        self.died = EngineDeadError("killed")
        self._death.set()

    async def wait_dead(self) -> EngineDeadError:
        await self._death.wait()
        assert self.died is not None
        return self.died

    def forget(self, stream: "CountingStream") -> None:
        if stream in self._streams:
            self._streams.remove(stream)
            self.num_aborted += stream.num_open > 0


class CountingStream:
    def __init__(self, engine: CountingEngine, submission: Submission) -> None:
        self._engine = engine
        self._submission = submission
        self._deltas = self._run()
        self.num_open = submission.params.n

    def __aiter__(self) -> "CountingStream":
        return self

    async def __anext__(self) -> Delta:
        return await anext(self._deltas)

    async def aclose(self) -> None:
        self._engine.forget(self)
        await self._deltas.aclose()

    async def _run(self) -> AsyncIterator[Delta]:
        params, prompt = self._submission.params, self._submission.prompt
        limit = params.max_tokens or CONTEXT - len(prompt)
        stops = {*params.stop_token_ids} | (set() if params.ignore_eos else {END})
        last = dict.fromkeys(range(params.n), prompt[-1])
        for step in range(limit):
            for index in sorted(last):
                if self._engine.died is not None:
                    raise self._engine.died
                await asyncio.sleep(self._engine.pause_s)
                delta = self._delta(index, step, _next(last[index]), limit, stops)
                last[index] = delta.tokens[-1] if delta.tokens else 0
                if delta.finish is not None:
                    del last[index]
                    self.num_open -= 1
                if not last:
                    self._engine.forget(self)
                yield delta

    def _delta(self, index: int, step: int, token: int, limit: int, stops: set[int]) -> Delta:
        params, prompt, id = self._submission.params, self._submission.prompt, self._submission.id
        if self._engine.fail_after is not None and step >= self._engine.fail_after:
            return Delta(id, index, finish=Finish.ERROR, error="a step failed")
        finish = Finish.STOP if token in stops else None
        if finish is None and step + 1 >= limit:
            finish = Finish.LENGTH
        of_prompt: tuple[Logprobs, ...] = ()
        if params.prompt_logprobs is not None and index == 0 and step == 0:
            of_prompt = tuple(_logprobs(each, params.prompt_logprobs) for each in prompt[1:])
        summary = Summary(len(prompt), step + 1, 3, 0, 0.1, 0.2, 0.3) if finish else None
        return Delta(
            id,
            index,
            (token,),
            (_logprobs(token, params.logprobs),) if params.logprobs is not None else (),
            of_prompt,
            finish,
            token if finish is Finish.STOP else None,
            None,
            summary,
        )


def _next(token: int) -> int:
    """After a special token an answer begins, with "A"; after "z", an end is reached."""
    if token >= 256:
        return ord("A")
    return END if token == ord("z") else (token + 1) % 256


def _logprobs(token: int, count: int) -> Logprobs:
    top = tuple(((token + i) % VOCAB_SIZE, -0.5 - i) for i in range(count))
    return Logprobs(token, -0.5, 1, top)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_byte_tokenizer(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="session")
def tokenizer(model_path: str) -> Tokenizer:
    return Tokenizer.load(model_path)


@dataclass
class Running:
    """A server in a thread of its own. `call` runs a function in that thread."""

    url: str
    port: int
    service: Service
    engine: CountingEngine
    loop: asyncio.AbstractEventLoop
    http: httpx.Client = field(repr=False)
    stop: Callable[[], None] = field(repr=False)

    def call(self, function: Callable[[], Any]) -> Any:
        async def run() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    def post(self, path: str, body: Any, **arguments: Any) -> httpx.Response:
        return self.http.post(path, json=body, **arguments)

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples of this exact name that carry these labels."""
        lines = self.http.get("/metrics").text.splitlines()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith((name + " ", name + "{")) and all(each in line for each in wanted)
        )

    def settled(self, name: str, value: float = 0.0) -> bool:
        """Whether the metric comes to this value within five seconds."""
        for _ in range(500):
            if self.total(name) == value:
                return True
            time.sleep(0.01)
        return False


Start = Callable[..., Running]


def begin(tokenizer: Tokenizer | None, *, template: str | None = None, **options: Any) -> Running:
    started = threading.Event()
    box: list[Any] = []

    async def main() -> None:
        engine = CountingEngine()
        service = Service(engine, tokenizer, ServerOptions(**options), template=template)
        config = uvicorn.Config(
            create_app(service),
            port=0,
            http=BoundedHttpProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        box.extend((engine, service, server, port, asyncio.get_running_loop()))
        started.set()
        await serving
        service.close()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert started.wait(20)
    engine, service, server, port, loop = box
    http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, verify=False)

    def stop() -> None:
        http.close()
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()

    return Running(f"http://127.0.0.1:{port}", port, service, engine, loop, http, stop)


@pytest.fixture
def start(tokenizer: Tokenizer) -> Iterator[Start]:
    """Starts servers of a test's own: start(max_queue=2, …) with fields of ServerOptions."""
    running: list[Running] = []

    def one(*, with_tokenizer: bool = True, **options: Any) -> Running:
        running.append(begin(tokenizer if with_tokenizer else None, **options))
        return running[-1]

    yield one
    for each in running:
        each.stop()


@pytest.fixture(scope="module")
def lasting(tokenizer: Tokenizer) -> Iterator[Running]:
    running = begin(tokenizer)
    yield running
    running.stop()


@pytest.fixture
def server(lasting: Running) -> Iterator[Running]:
    """One server for all tests of a module, that each finds, and must leave, with nothing to do."""
    lasting.engine.submissions.clear()
    lasting.engine.num_aborted = 0
    yield lasting
    lasting.engine.pause_s = 0.0
    lasting.engine.fail_after = None
    deadline = time.monotonic() + 5
    while (lasting.engine.stats.num_running or lasting.service.num_waiting) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.005)
    assert lasting.engine.stats.num_running == 0
    assert lasting.service.num_waiting == 0


@pytest.fixture(scope="module")
def client(lasting: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{lasting.url}/v1", api_key="none", max_retries=0) as client:
        yield client
