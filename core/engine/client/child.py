"""A Python process that ends with this one."""

import asyncio
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Callable
from contextlib import suppress
from signal import Signals

#: Longest line of a child's output that is handed on whole, in bytes.
LINE_BYTES = 1 << 20


class ChildProcess:
    """Made by `start`."""

    def __init__(self, process: Process, on_log: Callable[[str], None] | None) -> None:
        self._process = process
        self._reading = asyncio.create_task(self._read_log(on_log)) if on_log else None

    @classmethod
    async def start(
        cls, module: str, *arguments: str, on_log: Callable[[str], None] | None = None
    ) -> "ChildProcess":
        """Run the module as `python -m` does.

        The child's standard input stays open, and empty, as long as this process lives: a child
        that reads it learns of every kind of end. `on_log` gets its output by line.
        """
        output = (PIPE, STDOUT) if on_log else (None, None)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, *arguments),
            stdin=PIPE,
            stdout=output[0],
            stderr=output[1],
            limit=LINE_BYTES,
        )
        return cls(process, on_log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Negative for a signal; None while it runs."""
        return self._process.returncode

    def describe_exit(self) -> str:
        """ "with exit code 1", or "by SIGKILL"."""
        code = self.exit_code
        if code is not None and code < 0:
            return f"by {Signals(-code).name}"
        return f"with exit code {code}"

    async def wait(self) -> int:
        """The exit code, once the process ended."""
        return await self._process.wait()

    async def stop(self, patience_s: float) -> None:
        """Wait for its end, which is under way, and after `patience_s` kill it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._process.wait()
        if self.exit_code is None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._reading is not None:
            await self._reading

    async def _read_log(self, on_log: Callable[[str], None]) -> None:
        assert self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:  # longer than LINE_BYTES: readline has thrown it away
                continue
            if not line:
                return
            on_log(line.decode(errors="replace").rstrip("\r\n"))
