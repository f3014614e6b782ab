"""What attention does in one step, worked out once and used by every layer.

Shape legend: N requests of a group, K key/value heads, S tokens a block, C blocks of a chunk,
R query rows of a piece, L keys.

Two ways to number the parts of a layer's cache [P, 2, K, S, D]: a *strip* is the S tokens of one
block and head, one row of the cache seen as [P*2*K, S*D]; a *line* is one token of one head, one
row of it seen as [P*2*K*S, D].
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.platform import AttentionSpec, StepMetadata

#: Tokens of a request that are worth gathering at a time: fewer make matrices too thin.
CHUNK_TOKENS = 512
#: What starting another group costs, as numbers that could be gathered in that time.
GROUP_COST = 2**16
#: Query rows of a prompt that share a mask; each sees the keys up to the last row's.
PIECE_ROWS = 256
#: Numbers of scores computed at a time where torch's fused attention cannot be used.
PIECE_SCORES = 2**22


@dataclass(frozen=True, slots=True)
class Decodes:
    """Requests with one row each, whose visible parts are of similar length.

    Their keys are numbered from the first block that any window still reaches; `hidden_NL` says
    which of the keys from number `hidden_from` on a request must not see. Before it all are seen.
    """

    rows: Tensor  # [N] int64, of the step
    k_strips: tuple[Tensor, ...]  # a chunk each, [N*K*C] int64
    v_strips: tuple[Tensor, ...]
    hidden_from: int
    hidden_NL: Tensor  # bool


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows `start:stop` of the step see keys `first_key:last_key` of the prompt, less the mask.

    `mask` is for the rows in *reverse order*. Then what row r hides of key c depends on r + c
    alone, and all rows can share one vector, each seeing it from one entry further on: a view with
    strides (1, 1). None: row i sees the keys up to its own number.
    """

    start: int
    stop: int
    first_key: int
    last_key: int
    mask_RL: Tensor | None  # 0 or -inf, to be added


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request with several rows. `strips` is None where all its keys are computed in this step,
    so that nothing needs to be fetched from the cache."""

    start: int
    stop: int
    strips: Tensor | None  # [blocks] int64: of the keys of head 0
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    stored: Tensor | None  # rows to be stored; None: all
    k_lines: Tensor  # [rows to be stored * K] int64
    v_lines: Tensor
    decodes: tuple[Decodes, ...]
    prompts: tuple[Prompt, ...]


def make_plan(spec: AttentionSpec, step: StepMetadata, workspace: int) -> Plan:
    """`workspace`: the most numbers in a chunk of gathered keys, unless one block has more."""
    lengths: list[int] = step.lengths.tolist()
    starts: list[int] = step.query_start.tolist()
    stored, slots = None, step.slots
    if bool((slots < 0).any()):
        stored = (slots >= 0).nonzero().flatten()
        slots = slots[stored]
    k_lines, v_lines = _lines(spec, slots)
    return Plan(
        stored,
        k_lines,
        v_lines,
        tuple(
            _decodes(spec, step, requests, lengths, workspace)
            for requests in _groups(spec, lengths[: step.num_decodes], workspace)
        ),
        tuple(
            _prompt(spec, step, request, starts[request], starts[request + 1], lengths[request])
            for request in range(step.num_decodes, len(lengths))
            if starts[request] < starts[request + 1]
        ),
    )


def _lines(spec: AttentionSpec, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Where keys and values of the tokens at `slots` are stored, token by token, head by head."""
    size, heads = spec.block_size, spec.num_kv_heads
    block, offset = slots // size, slots % size
    k_TK = (block * (2 * heads * size) + offset)[:, None] + torch.arange(heads) * size
    k_lines = k_TK.flatten()
    return k_lines, k_lines + heads * size


# Requests with one token


def _groups(spec: AttentionSpec, lengths: Sequence[int], workspace: int) -> Iterator[list[int]]:
    """Requests of similar numbers of blocks, longest first: all are padded to the longest's."""
    token = spec.num_kv_heads * spec.head_dim
    blocks = [stop - start for start, stop in (_visible(spec, length) for length in lengths)]
    group: list[int] = []
    padded = useful = most = 0
    for request in sorted(range(len(blocks)), key=lambda request: -blocks[request]):
        useful += blocks[request] * spec.block_size
        padded += (blocks[group[0]] if group else 0) * spec.block_size
        wasted = padded - useful if group else 0
        if group and (len(group) >= most or wasted > max(useful // 4, GROUP_COST // token)):
            yield group
            group = []
        if not group:
            useful = padded = blocks[request] * spec.block_size
            most = max(1, workspace // (token * min(useful, max(CHUNK_TOKENS, spec.block_size))))
        group.append(request)
    if group:
        yield group


def _visible(spec: AttentionSpec, length: int) -> tuple[int, int]:
    """Entries of the block table that the last token of a request sees."""
    first = 0 if spec.window is None else max(0, length - spec.window) // spec.block_size
    return first, -(-length // spec.block_size)


def _decodes(
    spec: AttentionSpec,
    step: StepMetadata,
    requests: Sequence[int],
    lengths: Sequence[int],
    workspace: int,
) -> Decodes:
    heads, size = spec.num_kv_heads, spec.block_size
    visible = [_visible(spec, lengths[request]) for request in requests]
    count = max(stop - start for start, stop in visible)
    rows = torch.tensor(requests)
    first = torch.tensor([start for start, _ in visible])
    entries = first[:, None] + torch.arange(count)
    # Entries past a request's last one belong to any block: they are hidden.
    entries.clamp_(max=step.block_table.shape[1] - 1)
    blocks_NB = step.block_table[rows[:, None], entries].long()
    strips_NKB = (blocks_NB * (2 * heads))[:, None] + torch.arange(heads)[:, None]
    chunk = max(1, workspace // (len(requests) * heads * size * spec.head_dim))
    k_strips = tuple(part.flatten() for part in torch.split(strips_NKB, chunk, dim=-1))
    keys = torch.arange(count * size)
    own = torch.tensor([lengths[request] for request in requests]) - first * size
    hidden_NL = keys >= own[:, None]
    hidden_from = int(own.min())
    if spec.window is not None and int(own.max()) > spec.window:
        hidden_NL |= keys < (own - spec.window)[:, None]
        hidden_from = 0
    return Decodes(
        rows,
        k_strips,
        tuple(part + heads for part in k_strips),
        hidden_from,
        hidden_NL[:, hidden_from:],
    )


# Requests with several tokens


def _prompt(
    spec: AttentionSpec, step: StepMetadata, request: int, start: int, stop: int, length: int
) -> Prompt:
    count = stop - start
    window = spec.window if spec.window is not None and spec.window < length else None
    strips, first_token = None, 0
    if count < length:
        if window is not None:
            first_token = max(0, length - count + 1 - window) // spec.block_size * spec.block_size
        first, last = first_token // spec.block_size, -(-length // spec.block_size)
        strips = step.block_table[request, first:last].long() * (2 * spec.num_kv_heads)
    elif window is None and spec.soft_cap is None:
        return Prompt(start, stop, None, (Piece(start, stop, 0, count, None),))
    rows = PIECE_ROWS
    if spec.soft_cap is not None:
        rows = max(1, min(rows, PIECE_SCORES // (spec.num_heads * length)))
    dtype = torch.float32 if spec.soft_cap is not None else getattr(torch, spec.dtype)
    pieces = []
    for piece_start in range(start, stop, rows):
        piece_stop = min(stop, piece_start + rows)
        last_key = length - (stop - piece_stop)  # one past the last row's own key
        first_key = 0
        if window is not None:
            first_key = max(0, last_key - (piece_stop - piece_start) + 1 - window)
        mask_RL = _mask(piece_stop - piece_start, last_key - first_key, window, dtype)
        pieces.append(
            Piece(piece_start, piece_stop, first_key - first_token, last_key - first_token, mask_RL)
        )
    return Prompt(start, stop, strips, tuple(pieces))


def _mask(rows: int, keys: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """Of a piece whose last row sees the last key: row r, counted from the last, sees key c where
    keys - window <= r + c < keys."""
    place = torch.arange(rows + keys - 1)
    seen = place < keys
    if window is not None:
        seen &= place >= keys - window
    vector = torch.where(seen, 0.0, float("-inf")).to(dtype)
    return vector.as_strided((rows, keys), (1, 1))
