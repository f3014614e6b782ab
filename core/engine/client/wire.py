"""The two ends of the socket between a client and its engine process."""

import shutil
import tempfile
from dataclasses import dataclass

import msgspec
import zmq
import zmq.asyncio

from engine.client.messages import FromClient, FromEngine


class ClientWire:
    """The client's end of the socket, which lies in a folder that only this user may enter."""

    def __init__(self) -> None:
        # Mode 0700. A socket's path is limited to about a hundred bytes.
        too_long = len(tempfile.gettempdir()) > zmq.IPC_PATH_MAX_LEN // 2
        self._folder = tempfile.mkdtemp(prefix="engine-", dir="/tmp" if too_long else None)
        self.address = f"ipc://{self._folder}/socket"
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(self.address)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromEngine)

    def send(self, message: FromClient) -> None:
        """Never waits: without a high-water mark, the socket takes everything at once."""
        self._socket.send(self._encoder.encode(message))

    async def receive(self) -> FromEngine:
        message: FromEngine = self._decoder.decode(await self._socket.recv())
        return message

    async def poll(self, timeout_ms: int) -> bool:
        """Whether a message is waiting."""
        return bool(await self._socket.poll(timeout_ms))

    def close(self) -> None:
        self._socket.close()
        self._context.term()
        shutil.rmtree(self._folder, ignore_errors=True)


class EngineWire:
    """The engine's end of the socket."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)  # nothing is dropped, and the loop never waits for a slow client
        self._socket.connect(address)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromClient)

    def receive(self, *, wait: bool) -> "FromClient | Unreadable | None":
        """The next message; None when there is none and `wait` is False."""
        try:
            data = self._socket.recv(0 if wait else zmq.NOBLOCK)
        except zmq.Again:
            return None
        try:
            message: FromClient = self._decoder.decode(data)
            return message
        except msgspec.DecodeError as error:
            return Unreadable(data, str(error))

    def send(self, message: FromEngine) -> None:
        self._socket.send(self._encoder.encode(message))

    def close(self) -> None:
        """Returns once everything was handed over, or the other end is gone for two seconds."""
        self._socket.close(linger=2000)
        self._context.term()


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
