"""`generate` of transformers, as a worker: static batches of 32."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import protocol
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[2]))
from peers import Transformers


class Batches(Transformers):
    def __init__(self, load: Mapping[str, Any]) -> None:
        torch.set_num_threads(load["threads"])
        super().__init__(Path(load["model"]), "cpu", load["settings"]["dtype"])
        self.facts = {
            "version": f"{transformers.__version__}, torch {torch.__version__}",
            "dtype": load["settings"]["dtype"],
            "kv_bytes": None,  # the cache grows with what it holds
        }


if __name__ == "__main__":
    protocol.serve(Batches)
