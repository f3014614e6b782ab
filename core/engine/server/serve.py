"""The server as a process: from its start to its exit code.

load ─→ listen ─→ ready ─┬─ SIGTERM, SIGINT ─→ drain ─→ 0      (a second signal: at once)
                         └─ the engine died ─→ linger ─→ 1

While the engine's process loads, this one imports what answers requests: that takes it a second.
What conversations are rendered with takes another: a first one that comes earlier waits for it.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import uvicorn

from engine.client import AsyncEngine
from engine.errors import ConfigError
from engine.server.options import ServerOptions
from engine.text import Tokenizer

if TYPE_CHECKING:
    from engine.server.service import Service

ENGINE_DIED: Final = 1
INTERRUPTED: Final = 128  # and the number of the signal, as shells count

#: After the last token, answers still have to be written to their sockets.
FLUSH_S: Final = 5

KEEP_ALIVE_S: Final = 30

log = logging.getLogger(__name__)


def serve(
    settings: Mapping[str, Any],
    options: ServerOptions,
    *,
    show: Callable[[str], None] = lambda line: print(line, flush=True),
    target: str = "engine.assemble:assemble",
) -> int:
    """Serve until a signal comes or the engine dies. Returns the exit code: 0 after a drain.

    `settings` are the EngineConfig fields that the user chose; `show` gets the ready line, which
    names the address; `target` builds the engine, in a process of its own.

    Raises:
        ConfigError: the address cannot be had, or the chat template not read.
        EngineError: the engine could not be started.
    """
    logging.basicConfig(
        level=options.log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(settings, options, show, target))


async def _serve(
    settings: Mapping[str, Any],
    options: ServerOptions,
    show: Callable[[str], None],
    target: str,
) -> int:
    template = _read_template(options.chat_template)
    with _bound(options) as listener, _signals() as signals:
        starting = asyncio.create_task(AsyncEngine.start(settings, target=target))
        answering = asyncio.create_task(asyncio.to_thread(import_module, "engine.server.app"))
        rendering = asyncio.create_task(_import_renderer(answering))
        stopped = asyncio.create_task(signals.get())
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, rendering, return_exceptions=True)
            return INTERRUPTED + stopped.result()
        stopped.cancel()
        engine = starting.result()
        try:
            await answering
            from engine.server.service import Service

            trusted = bool(settings.get("trust_remote_code", False))
            tokenizer = Tokenizer.find(engine.facts.model.path, trust_remote_code=trusted)
            service = Service(engine, tokenizer, options, template=template)
            return await _run(service, listener, signals, show)
        finally:
            await engine.close()
            await asyncio.gather(rendering, return_exceptions=True)


async def _import_renderer(answering: "asyncio.Task[ModuleType]") -> None:
    """Afterwards, or else they would share the time until the engine is ready."""
    await answering
    try:
        await asyncio.to_thread(Tokenizer.import_renderer)
    except Exception:  # nobody waits for this: said here, and to who asks for a conversation
        log.exception("what renders conversations cannot be imported")


async def _run(
    service: "Service",
    listener: socket.socket,
    signals: "asyncio.Queue[int]",
    show: Callable[[str], None],
) -> int:
    server = _Server(_config(service))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        if serving.done():
            serving.result()
            raise ConfigError("the HTTP server ended while it started; its log says why")
        show(_ready_line(service, listener))
        return await _until_the_end(service, server, signals)
    finally:
        server.should_exit = True
        if server.force_exit:
            serving.cancel()
        await asyncio.gather(serving, return_exceptions=server.force_exit)
        service.close()


async def _until_the_end(
    service: "Service", server: "_Server", signals: "asyncio.Queue[int]"
) -> int:
    signalled = asyncio.create_task(signals.get())
    died = asyncio.create_task(service.engine.wait_dead())
    try:
        await asyncio.wait({signalled, died}, return_when=asyncio.FIRST_COMPLETED)
        if died.done():
            log.error("the engine process ended: %s", died.result())
            again = asyncio.create_task(signals.get()) if signalled.done() else signalled
            await asyncio.wait({again}, timeout=service.options.linger_s)
            again.cancel()
            return ENGINE_DIED
        return await _drain(service, server, signals)
    finally:
        signalled.cancel()
        died.cancel()


async def _drain(service: "Service", server: "_Server", signals: "asyncio.Queue[int]") -> int:
    """New requests get 503 from here on; running ones have their time."""
    log.info("shutting down: running requests may take %g s", service.options.shutdown_timeout_s)
    service.draining = True
    draining = asyncio.create_task(service.engine.drain(service.options.shutdown_timeout_s))
    again = asyncio.create_task(signals.get())
    await asyncio.wait({draining, again}, return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        draining.cancel()
        server.force_exit = True
        return INTERRUPTED + again.result()
    again.cancel()
    if not draining.result():
        log.warning("the time is over: requests that were still running were ended")
    return 0


class _Server(uvicorn.Server):
    """uvicorn, with the signals left to us."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(service: "Service") -> uvicorn.Config:
    from engine.server.app import create_app
    from engine.server.protocol import BoundedHttpProtocol

    options = service.options
    return uvicorn.Config(
        create_app(service),
        http=BoundedHttpProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=options.log_level if options.access_log else _at_least_warning(options),
        access_log=options.access_log,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=FLUSH_S,
    )


def _at_least_warning(options: ServerOptions) -> str:
    """uvicorn's news of its own start and end are no news to our users."""
    return options.log_level if options.log_level in ("critical", "error") else "warning"


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    return uvicorn.Config("", loop="auto").get_loop_factory()


@contextmanager
def _signals() -> "Iterator[asyncio.Queue[int]]":
    """SIGTERM and SIGINT, in the order in which they came."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, queue.put_nowait, int(number))
    try:
        yield queue
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@contextmanager
def _bound(options: ServerOptions) -> Iterator[socket.socket]:
    """The server's address, taken before the model is loaded, so that a failure comes early.

    Raises:
        ConfigError: it is not free, or not ours.
    """
    place = options.uds or f"{options.host}:{options.port}"
    try:
        listener = _bind_path(options.uds) if options.uds else _bind_host(options)
    except OSError as error:
        raise ConfigError(f"cannot listen on {place}: {error.strerror or error}") from error
    with listener:
        yield listener
    if options.uds:
        Path(options.uds).unlink(missing_ok=True)


def _bind_host(options: ServerOptions) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _bind_path(path: str) -> socket.socket:
    """A socket that nobody listens on any more is left over from a server that was killed."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if Path(path).is_socket() and listener.connect_ex(path) != 0:
            os.unlink(path)
        listener.bind(path)
    except OSError:
        listener.close()
        raise
    return listener


def _read_template(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the chat template {path}: {error}") from error


def _ready_line(service: "Service", listener: socket.socket) -> str:
    """The address, and something to try."""
    options, model = service.options, service.model_names[0]
    if options.uds:
        base, where = "http://localhost", f"--unix-socket {options.uds} "
    else:
        host, port = listener.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        base, where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", ""
    key = "-H 'Authorization: Bearer KEY' " if options.api_keys else ""
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    path = "/v1/chat/completions"
    if service.tokenizer is None or not (service.template or service.tokenizer.chat_template):
        body, path = f'{{"model": "{model}", "prompt": "Hello"}}', "/v1/completions"
    return (
        f"engine serves {model} on {options.uds or base}\n"
        f"  curl {where}{base}{path} {key}-H 'Content-Type: application/json' -d '{body}'"
    )
