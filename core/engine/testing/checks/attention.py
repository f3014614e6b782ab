"""Paged attention against plain attention in float64: each case is a script of steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.platform import AttentionSpec, Capabilities, Prologue
from engine.testing.checks.case import (
    Case,
    all_of,
    needs_block_size,
    needs_chunked_prefill,
    needs_dtype,
    needs_kv_dtype,
    needs_mixed_batches,
    needs_prefix_reuse,
)
from engine.testing.checks.paged import Paged
from engine.testing.checks.subject import Subject

#: Largest difference over the largest value of the right answer. Results are rounded to the dtype;
#: fast kernels round the attention weights too.
TOLERANCES = {"float32": 2e-5, "bfloat16": 2e-2, "float16": 3e-3}

#: For caches that round to this few bits, each in a way of its own.
KV_TOLERANCES = {"int8": 3e-2, "fp8_e4m3": 1e-1, "fp8_e5m2": 2e-1}

#: Tokens: one, and one less, equal to and one more than multiples of the usual block size.
LENGTHS = (1, 15, 16, 17, 255, 257)
RATIOS = ((4, 4), (8, 2), (7, 1), (8, 1), (14, 2))
HEAD_DIMS = (16, 80, 96, 128, 256)
BLOCK_SIZES = (1, 4, 8, 16, 32, 64, 128, 256)


PROLOGUES = {
    "rotary": Prologue(rotary_dim=64),
    "norm-and-rotary": Prologue(rotary_dim=64, norm_epsilon=1e-6),
    "partial-rotary": Prologue(rotary_dim=16),
}


def grows_to(length: int) -> Callable[[Paged], None]:
    def script(paged: Paged) -> None:
        """A prompt at once, then three tokens one by one."""
        one = paged.add(length + 3)
        for count in (length, 1, 1, 1):
            paged.step((one, count))

    return script


def several_prompts_at_once(paged: Paged) -> None:
    """Prompts of different lengths share a step."""
    paged.step(*((paged.add(length), length) for length in (5, 16, 17, 40, 3)))


def decodes_a_batch(paged: Paged) -> None:
    """Requests of very different lengths get their next token in one step."""
    rows = [paged.add(length + 2) for length in LENGTHS]
    for one, length in zip(rows, LENGTHS, strict=True):
        paged.step((one, length))
    paged.step(*((one, 1) for one in rows))
    paged.step(*((one, 1) for one in reversed(rows)))


def decodes_a_few(paged: Paged) -> None:
    """As `decodes_a_batch`, with less to compute."""
    lengths = (17, 1, 100, 40)
    rows = [paged.add(length + 1) for length in lengths]
    for one, length in zip(rows, lengths, strict=True):
        paged.step((one, length))
    paged.step(*((one, 1) for one in rows))


def decodes_many(paged: Paged) -> None:
    """33 requests: more than the usual tile of rows, and no multiple of it."""
    rows = [paged.add(length + 1) for length in range(2, 35)]
    paged.step(*((one, length) for one, length in zip(rows, range(2, 35), strict=True)))
    paged.step(*((one, 1) for one in rows))


def computes_a_prompt_in_chunks(paged: Paged) -> None:
    """Chunks that end inside blocks, the last one of two tokens."""
    one = paged.add(257)
    for count in (100, 57, 98, 2):
        paged.step((one, count))


def chunks_beside_each_other(paged: Paged) -> None:
    """Two prompts, each continued behind a part that is in the cache."""
    one, other = paged.add(130), paged.add(90)
    paged.step((one, 70), (other, 19))
    paged.step((other, 50), (one, 60))


def prefill_beside_decode(paged: Paged) -> None:
    """One step has a new prompt, a continued one, and requests with one token."""
    old, older, continued, new = (paged.add(length) for length in (40, 260, 90, 33))
    paged.step((old, 39), (older, 258), (continued, 30))
    paged.step((new, 33), (older, 1), (continued, 60), (old, 1))
    paged.step((older, 1))


def shares_a_prefix(paged: Paged) -> None:
    """A second request begins with two full blocks that the first one wrote."""
    shared = 2 * paged.spec.block_size
    first = paged.add(shared + 6)
    paged.step((first, shared + 5))
    second = paged.add(shared + 9, first, shared)
    paged.step((second, 8))
    for one in (first, second):
        paged.step((one, 1))


def shares_a_prefix_within_a_step(paged: Paged) -> None:
    """The second request reads blocks that the first one writes in the same step."""
    shared = 2 * paged.spec.block_size
    first = paged.add(shared + 5)
    second = paged.add(shared + 9, first, shared)
    paged.step((first, shared + 5), (second, 9))


def copies_what_siblings_write(paged: Paged) -> None:
    """Two siblings go on from one prompt in copies of its last block, and do not disturb it."""
    length = 2 * paged.spec.block_size + paged.spec.block_size // 2
    parent = paged.add(length + 3)
    paged.step((parent, length))
    children = [paged.fork(parent, length + 3) for _ in range(2)]
    for _ in range(3):
        for one in (parent, *children):
            paged.step((one, 1))


def copies_many_blocks(paged: Paged) -> None:
    """A request moves to other blocks; the old ones are spoilt."""
    one = paged.add(5 * paged.spec.block_size + 3)
    paged.step((one, 5 * paged.spec.block_size + 1))
    paged.copy_everything(one)
    paged.step((one, 1))
    paged.step((one, 1))


def never_reads_what_it_did_not_write(paged: Paged) -> None:
    """Every block holds NaN before, as memory that was used by others may."""
    paged.poison()
    decodes_a_batch(paged)
    several_prompts_at_once(paged)


def sees_only_its_window(paged: Paged) -> None:
    """A prompt longer than the window, then single tokens."""
    rows = [paged.add(length + 2) for length in (50, 17, 3)]
    paged.step(*((one, length) for one, length in zip(rows, (50, 17, 3), strict=True)))
    paged.step(*((one, 1) for one in rows))
    paged.step(*((one, 1) for one in rows))


@dataclass(frozen=True, slots=True)
class _Script:
    """`tokens` and `rows` size the cache; `spec` differs from the usual one."""

    name: str
    play: Callable[[Paged], None]
    tokens: int
    rows: int
    spec: tuple[tuple[str, Any], ...] = ()
    skip: Callable[[Capabilities], str | None] = lambda capabilities: None
    optional: bool = False
    blocks: int = 0  # more, of any size
    prologue: Prologue | None = None


_PROMPTS = 700  # tokens of `decodes_a_batch` and `several_prompts_at_once` together

SCRIPTS = (
    *(_Script(f"length-{n}", grows_to(n), n + 3, 1) for n in LENGTHS),
    _Script("several-prompts-at-once", several_prompts_at_once, 81, 5),
    _Script("decode-batch", decodes_a_batch, 600, 6),
    _Script("decode-many", decodes_many, 700, 33),
    *(
        _Script(
            f"heads-{h}-over-{k}", decodes_a_batch, 600, 6, (("num_heads", h), ("num_kv_heads", k))
        )
        for h, k in RATIOS
    ),
    *(
        _Script(f"head-dim-{d}", decodes_a_few, 162, 4, (("head_dim", d),), optional=True)
        for d in HEAD_DIMS
    ),
    _Script("scale", several_prompts_at_once, 81, 5, (("scale", 0.3),)),
    *(
        _Script(f"window-{w}", sees_only_its_window, 90, 3, (("window", w),), optional=True)
        for w in (1, 5, 16, 40)
    ),
    _Script("soft-cap", decodes_a_few, 162, 4, (("soft_cap", 2.0),), optional=True),
    _Script(
        "window-and-soft-cap",
        sees_only_its_window,
        90,
        3,
        (("window", 7), ("soft_cap", 2.0)),
        optional=True,
    ),
    _Script("chunks", computes_a_prompt_in_chunks, 257, 1, skip=needs_chunked_prefill),
    _Script("chunks-together", chunks_beside_each_other, 220, 2, skip=needs_chunked_prefill),
    _Script(
        "mixed",
        prefill_beside_decode,
        430,
        4,
        skip=all_of(needs_mixed_batches, needs_chunked_prefill),
    ),
    _Script("shared-prefix", shares_a_prefix, 20, 2, skip=needs_prefix_reuse, blocks=4),
    _Script(
        "shared-prefix-within-a-step",
        shares_a_prefix_within_a_step,
        20,
        2,
        skip=needs_prefix_reuse,
        blocks=4,
    ),
    _Script("copy-on-write", copies_what_siblings_write, 9, 3, skip=needs_prefix_reuse, blocks=9),
    _Script("copy-many", copies_many_blocks, 3, 2, skip=needs_prefix_reuse, blocks=12),
    *(
        _Script(f"prologue-{name}", decodes_a_few, 162, 4, optional=True, prologue=prologue)
        for name, prologue in PROLOGUES.items()
    ),
    _Script(
        "prologue-mixed",
        prefill_beside_decode,
        430,
        4,
        skip=all_of(needs_mixed_batches, needs_chunked_prefill),
        optional=True,
        prologue=PROLOGUES["norm-and-rotary"],
    ),
    _Script("poisoned", never_reads_what_it_did_not_write, _PROMPTS, 11),
)


def follows(script: _Script, dtype: str, **spec: Any) -> Callable[[Subject], float]:
    def check(subject: Subject) -> float:
        """The largest relative error of any step."""
        sizes = subject.capabilities.block_sizes
        kv_dtypes = subject.capabilities.kv_dtypes
        chosen: dict[str, Any] = {
            "num_heads": 8,
            "num_kv_heads": 2,
            "head_dim": 64,
            "block_size": sizes[0],
            "dtype": dtype,
            "kv_dtype": dtype if dtype in kv_dtypes else kv_dtypes[0],
            **dict(script.spec),
            **spec,
        }
        chosen.setdefault("scale", chosen["head_dim"] ** -0.5)
        blocks = -(-script.tokens // chosen["block_size"]) + 2 * script.rows + script.blocks
        made = AttentionSpec(**chosen)
        paged = Paged(subject.platform, made, blocks, script.name, script.prologue)
        script.play(paged)
        return paged.error

    return check


def _cases(dtype: str) -> list[Case]:
    tolerance = TOLERANCES[dtype]

    def case(
        name: str, script: _Script, *skips: Any, optional: bool, coarse: float = 0.0, **spec: Any
    ) -> Case:
        return Case(
            id=f"attention/{dtype}/{name}",
            level="attention",
            check=follows(script, dtype, **spec),
            tolerance=max(tolerance, coarse),
            skip=all_of(needs_dtype(dtype), script.skip, *skips),
            optional=optional,
            wide=True,
        )

    few = _Script("decode-few", decodes_a_few, 162, 4)
    chunks = next(script for script in SCRIPTS if script.name == "chunks")
    return [
        *(case(script.name, script, optional=script.optional) for script in SCRIPTS),
        *(
            case(f"block-size-{size}", few, needs_block_size(size), optional=False, block_size=size)
            for size in BLOCK_SIZES
        ),
        *(
            case(f"kv-{kv}", chunks, needs_kv_dtype(kv), optional=True, kv_dtype=kv)
            for kv in TOLERANCES
            if kv != dtype
        ),
        *(
            case(
                f"kv-{kv}-{script.name}",
                script,
                needs_kv_dtype(kv),
                optional=True,
                coarse=coarse,
                kv_dtype=kv,
            )
            for kv, coarse in KV_TOLERANCES.items()
            for script in SCRIPTS
            if script.name in ("chunks", "decode-batch", "copy-many")
        ),
    ]


CASES = tuple(case for dtype in TOLERANCES for case in _cases(dtype))
