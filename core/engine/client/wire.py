"""The two ends of the sockets between a client and its engine process: one for each direction."""

import shutil
import tempfile
from dataclasses import dataclass

import msgspec
import zmq
import zmq.asyncio

from engine.client.messages import FromClient, FromEngine

#: The sockets' names in their folder: client → engine, and engine → client.
ORDERS, REPORTS = "orders", "reports"

#: How long a closed socket goes on handing over.
LINGER_MS = 2000


class ClientWire:
    """The client's end of the sockets, which lie in a folder that only this user may enter.

    `address` is what `EngineWire` takes.
    """

    def __init__(self) -> None:
        # Mode 0700. A socket's path is limited to about a hundred bytes.
        too_long = len(tempfile.gettempdir()) > zmq.IPC_PATH_MAX_LEN // 2
        self._folder = tempfile.mkdtemp(prefix="engine-", dir="/tmp" if too_long else None)
        self.address = f"ipc://{self._folder}/"
        self._context = zmq.asyncio.Context()
        self._orders = self._bind(zmq.PUSH, ORDERS)
        self._reports = self._bind(zmq.PULL, REPORTS)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromEngine)

    def send(self, message: FromClient) -> None:
        """Never waits: without a high-water mark, the socket takes everything at once."""
        self._orders.send(self._encoder.encode(message))

    async def receive(self) -> FromEngine:
        message: FromEngine = self._decoder.decode(await self._reports.recv())
        return message

    async def poll(self, timeout_ms: int) -> bool:
        """Whether a message is waiting."""
        return bool(await self._reports.poll(timeout_ms))

    def close(self) -> None:
        self._orders.close()
        self._reports.close()
        self._context.term()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _bind(self, kind: int, name: str) -> zmq.asyncio.Socket:
        socket = self._context.socket(kind)
        socket.set_hwm(0)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(self.address + name)
        return socket


class EngineWire:
    """The engine's end of the sockets. All but `send_last` belongs to one thread."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._context = zmq.Context()
        self._orders = self._connect(zmq.PULL, ORDERS)
        self._reports = self._connect(zmq.PUSH, REPORTS)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromClient)

    def receive(self, *, wait: bool) -> "FromClient | Unreadable | None":
        """The next message; None when there is none and `wait` is False."""
        try:
            data = self._orders.recv(0 if wait else zmq.NOBLOCK)
        except zmq.Again:
            return None
        try:
            message: FromClient = self._decoder.decode(data)
            return message
        except msgspec.DecodeError as error:
            return Unreadable(data, str(error))

    def send(self, message: FromEngine) -> None:
        self._reports.send(self._encoder.encode(message))

    def send_last(self, message: FromEngine) -> None:
        """From any thread, while the wire's own one hangs; the process ends after it.

        Returns when it was handed over, or after two seconds. It may overtake what was sent before.
        """
        context = zmq.Context()  # of its own: `term` waits for its sockets alone
        socket = context.socket(zmq.PUSH)
        socket.connect(self._address + REPORTS)
        socket.send(msgspec.msgpack.encode(message))
        socket.close(linger=LINGER_MS)
        context.term()

    def close(self) -> None:
        """Returns once everything was handed over, or the other end is gone for two seconds."""
        self._orders.close(linger=0)
        self._reports.close(linger=LINGER_MS)
        self._context.term()

    def _connect(self, kind: int, name: str) -> "zmq.Socket[bytes]":
        socket = self._context.socket(kind)
        socket.set_hwm(0)  # nothing is dropped, and the loop never waits for a slow client
        socket.connect(self._address + name)
        return socket


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Bytes that are no message."""

    data: bytes
    reason: str

    @property
    def submission_id(self) -> str | None:
        """Whose submission it was meant to be, if that can be told: someone waits for it."""
        try:
            return msgspec.msgpack.decode(self.data, type=_Addressed).submission.id
        except msgspec.DecodeError:
            return None


class _Id(msgspec.Struct):
    id: str


class _Addressed(msgspec.Struct):
    submission: _Id
