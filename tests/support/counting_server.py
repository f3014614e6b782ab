"""The whole server, its engine process included, over a device that counts up; no torch.

python counting_server.py SETTINGS OPTIONS, two JSON objects: settings are those of
`counting_engine.counting` and `load_s`, what loading takes; options are those of the server.
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from byte_tokenizer import VOCAB_SIZE
from counting_engine import CountingEngine, counting

from engine.server import ServerOptions, serve


def make(settings: Mapping[str, Any]) -> CountingEngine:
    """The counting engine, which knows the special tokens of chat prompts beyond its bytes."""
    time.sleep(settings.get("load_s", 0.0))
    engine = counting(settings)
    model = replace(engine.facts.model, vocab_size=VOCAB_SIZE)
    engine.facts = replace(engine.facts, model=model)
    return engine


if __name__ == "__main__":
    settings, options = json.loads(sys.argv[1]), json.loads(sys.argv[2])
    sys.exit(serve(settings, ServerOptions(**options), target="counting_server:make"))
