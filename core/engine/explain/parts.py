"""Every part: what was chosen, and why the others were refused."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engine import assemble
from engine.config import EngineConfig
from engine.errors import UnsupportedError
from engine.explain.findings import Part, Refusal
from engine.facts import ModelFacts
from engine.models import load, outline
from engine.platform.attention import AttentionBackend, AttentionSpec
from engine.platform.base import Platform
from engine.platform.ops import LOWER_PRIORITY, Answer, OpTable
from engine.platform.shapes import ShapeBuckets
from engine.plugins import PluginManager

if TYPE_CHECKING:
    from engine.models.model import Model

#: The one that is explained: all ranks of an engine are put together alike.
RANK = 0

ON_SHAPES = "nothing was loaded: layers were built on the shapes of their weights"
LOADED = "the model was loaded: it runs through transformers' code, which must be tried"
NOT_ASKED = "nothing was loaded: the platform runs models by itself, and chooses in its own runner"

#: Which layers ask for an operation. What is not here is listed under "other".
LAYERS = {
    "embedding": "embedding and output",
    "tied_embedding": "embedding and output",
    "rms_norm": "norm",
    "add_rms_norm": "norm",
    "rotary_angles": "rotary positions",
    "rotary": "rotary positions",
    "linear": "linear",
    "silu_and_multiply": "feed-forward",
    "gelu_tanh_and_multiply": "feed-forward",
    "mixture_of_experts": "feed-forward",
    "argmax": "sampler",
    "penalize": "sampler",
    "sample": "sampler",
}

#: The sampler of a platform whose device chooses no tokens; its table is not asked.
ON_HOST = Part(
    "sampler", "argmax, penalize, sample", "reference", note="on the host: logits go there"
)


def explain_parts(
    config: EngineConfig,
    platform: Platform,
    model: ModelFacts,
    chosen: assemble.Chosen,
    buckets: ShapeBuckets | None,
    plugins: PluginManager,
) -> tuple[str, list[Part]]:
    """How they were found out, and the parts."""
    own = platform.runner()
    if own is not None:
        own.close()
        why = "the platform brings its own (narrow seam)"
        refused = Refusal("engine's own runner", why)
        return NOT_ASKED, [Part("runner", "narrow seam", _name(own), refused=(refused,))]
    basis, specs, answers = _questions(config, platform, model, chosen, plugins)
    return basis, [
        Part("runner", "wide seam", "engine's own runner", note="the platform brings none"),
        _graphs(platform, buckets),
        _communicator(platform, config.tensor_parallel),
        *(_attention(platform, one, specs.count(one)) for one in dict.fromkeys(specs)),
        *answers,
    ]


def _questions(
    config: EngineConfig,
    platform: Platform,
    model: ModelFacts,
    chosen: assemble.Chosen,
    plugins: PluginManager,
) -> tuple[str, Sequence[AttentionSpec], list[Part]]:
    """What the model's layers ask for: how it is known, of attention, and of the table."""
    table = assemble.operations(platform, plugins)
    request: dict[str, Any] = {
        "config": config,
        "dtype": chosen.dtype,
        "kv_dtype": chosen.kv_dtype,
        "block_size": chosen.block_size,
        "device": platform.device,
        "ops": table,
    }
    outlined = outline(model, **request, ranks=config.tensor_parallel)
    if outlined is not None:
        basis, specs = ON_SHAPES, outlined.specs
    else:
        ranks = platform.communicator((RANK,))
        loaded: Model = load(model, **request, communicator=ranks, show_progress=True)
        basis, specs = LOADED, loaded.attention_specs()
    if platform.capabilities.sampling == "host":
        return basis, specs, [*_operations(table), ON_HOST]
    _ask_sampler(table, platform.device, model.vocab_size)
    return basis, specs, _operations(table)


def _ask_sampler(table: OpTable, device: str, vocab_size: int) -> None:
    from engine.models.outlining import Questions
    from engine.sampling.sampler import Sampler

    Sampler(vocab_size, 1, "meta", Questions(table, device))


def _operations(table: OpTable) -> list[Part]:
    """The table's answers, by kind of layer."""
    kinds = [*dict.fromkeys(LAYERS.values()), "other"]
    found: dict[str, list[Part]] = {kind: [] for kind in kinds}
    for answer, times in table.answers.items():
        kind = LAYERS.get(answer.name, "other")
        refused = tuple(
            Refusal(f"{name} (another one)" if name == answer.source else name, why)
            for name, why in dict.fromkeys(answer.refused)
        )
        found[kind].append(Part(kind, _question(answer), answer.source, times, refused))
    return [part for kind in kinds for part in found[kind]]


def _question(answer: Answer) -> str:
    facts = {name: value for name, value in answer.facts if name not in ("dtype", "device")}
    told = [
        name if value is True else f"{name} {value}"
        for name, value in facts.items()
        if value is not None and value is not False
    ]
    return f"{answer.name} of {', '.join(told)}" if told else answer.name


def _attention(platform: Platform, spec: AttentionSpec, times: int) -> Part:
    question = _describe(spec)
    try:
        made: type[AttentionBackend] | None = type(platform.attention(spec))
        note = "" if platform.attention_backends else "the platform names no backends to compare"
    except UnsupportedError as error:
        made, note = None, str(error)
    refused = []
    for backend in platform.attention_backends:
        if backend is made:
            continue
        # Those after the chosen one are asked too: it shows what would serve in its place.
        why = backend.unsupported(spec) or (LOWER_PRIORITY if made else "it was not made")
        refused.append(Refusal(backend.__qualname__, why))
    chosen = None if made is None else f"{made.__qualname__} ({made.__module__})"
    return Part("attention", question, chosen, times, tuple(refused), note)


def _describe(spec: AttentionSpec) -> str:
    heads = f"{spec.num_heads} heads over {spec.num_kv_heads} of {spec.head_dim}"
    window = "" if spec.window is None else f", window {spec.window}"
    cap = "" if spec.soft_cap is None else f", scores capped at {spec.soft_cap:g}"
    return f"{heads}, {spec.dtype} over {spec.kv_dtype}, blocks of {spec.block_size}{window}{cap}"


def _graphs(platform: Platform, buckets: ShapeBuckets | None) -> Part:
    graphs = platform.graphs()
    told = graphs.report()
    graphs.close()
    if buckets is None:
        return Part("graph runner", "steps of any shape", _name(graphs), note=told)
    shapes = buckets.shapes()
    largest = f"the largest {max(shapes)}; one that is missing: {buckets.missing}"
    return Part("graph runner", f"steps of {len(shapes)} shapes", _name(graphs), note=largest)


def _communicator(platform: Platform, ranks: int) -> Part:
    if ranks == 1:
        return Part("communicator", "1 rank", _name(platform.communicator((RANK,))))
    made = f"made by {type(platform).__qualname__}.communicator"
    return Part("communicator", f"{ranks} ranks", made, note="when all ranks have met")


def _name(part: object) -> str:
    kind = type(part)
    return f"{kind.__qualname__} ({kind.__module__})"
