"""Ours, offline, as a worker."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import protocol

sys.path.insert(0, str(Path(__file__).parents[2]))
from peers import Engine

import engine
from engine.config import resolve
from engine.plugins import PluginManager

DEVICE = "cpu"


class Ours(Engine):
    def __init__(self, load: Mapping[str, Any]) -> None:
        settings = dict(load["settings"])
        dtype = settings.pop("dtype", "auto")
        block_size = settings.setdefault("block_size", _block_size())
        num_blocks = settings.setdefault("num_blocks", -(-load["kv_tokens"] // block_size))
        super().__init__(Path(load["model"]), DEVICE, dtype, **settings)
        kv_dtype = settings.get("kv_dtype", self.llm.facts.dtype)
        self.facts = {
            "version": engine.__version__,
            "dtype": self.llm.facts.dtype,
            "kv_bytes": protocol.kv_bytes(
                load["model"], num_blocks * block_size, protocol.BYTES[kv_dtype]
            ),
        }


def _block_size() -> int:
    """What the platform would choose, so that the KV budget can be said in blocks."""
    plugins = PluginManager()
    spec = plugins.select(DEVICE)
    platform = plugins.create_platform(spec, resolve({}, plugins.defaults(spec)).config, 0)
    try:
        return platform.capabilities.block_sizes[0]
    finally:
        platform.close()


if __name__ == "__main__":
    protocol.serve(Ours)
