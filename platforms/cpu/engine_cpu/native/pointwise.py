"""Norms, rotary positions, gated activations and embedding, by the native kernels.

Signatures and dtypes are those of the core's table of operations. Where the reference computes in
the dtype of x (gated activations), these compute in float32 and round once, which is at least as
accurate; a sum that the contract rounds before the norm (`add_rms_norm`) is rounded here too.

Rows may lie apart, as in slices of a wider matrix; the last dimension must be contiguous, and is
made so by a copy where it is not. Results are new and contiguous.

Shape legend: T tokens, W width, H query heads, K key/value heads, D head dim, R rotated part of D,
F width of the result, V rows of the embedding.

Import this only where `engine_cpu.native.available()` is None: it loads the library.
"""

from engine_cpu_kernels import library
from torch import Tensor, float32

from engine.platform import OpTable
from engine_cpu.native import DTYPES, refuses
from engine_cpu.native.memory import NotRecordable, empty, recording

SOURCE = "cpu-native"
PRIORITY = 20

# Looked up once: an attribute of the library costs more than a small kernel's arguments.
_rms_norm = library().ek_rms_norm
_add_rms_norm = library().ek_add_rms_norm
_rotary_angles = library().ek_rotary_angles
_rotary = library().ek_rotary
_silu_and_multiply = library().ek_silu_and_multiply
_gelu_tanh_and_multiply = library().ek_gelu_tanh_and_multiply
_embedding = library().ek_embedding


def register(table: OpTable) -> None:
    """Add them to a table that the core has filled."""
    for function in (
        rms_norm,
        add_rms_norm,
        rotary_angles,
        rotary,
        silu_and_multiply,
        gelu_tanh_and_multiply,
        embedding,
    ):
        table.register(function.__name__, source=SOURCE, priority=PRIORITY, unless=refuses)(
            function
        )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[T, W] or [T, H, W], each row on its own; of another shape if contiguous, else copied."""
    shape, strides = x.shape, x.stride()
    if len(shape) == 2 and strides[1] == 1:
        rows, row_stride = 1, 0
    elif len(shape) == 3 and strides[2] == 1:
        rows, row_stride = shape[1], strides[1]
    else:
        return rms_norm(_contiguous(x).view(-1, shape[-1]), weight, eps).view(shape)
    y = empty(shape, x.dtype)
    if _rms_norm(
        x.data_ptr(),
        strides[0],
        row_stride,
        rows,
        weight.data_ptr(),
        y.data_ptr(),
        shape[-1],
        eps,
        DTYPES[x.dtype],
        _weight_dtype(weight, x),
        shape[0],
    ):
        raise NotRecordable(f"rms_norm of {shape[0]} tokens")
    return y


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if x.stride(-1) != 1 or residual.stride(-1) != 1:
        x, residual = _contiguous(x), _contiguous(residual)
    shape = x.shape
    y, total = empty(shape, x.dtype), empty(shape, x.dtype)
    if _add_rms_norm(
        x.data_ptr(),
        x.stride(0),
        residual.data_ptr(),
        residual.stride(0),
        weight.data_ptr(),
        y.data_ptr(),
        total.data_ptr(),
        shape[1],
        eps,
        DTYPES[x.dtype],
        _weight_dtype(weight, x),
        shape[0],
    ):
        raise NotRecordable(f"add_rms_norm of {shape[0]} tokens")
    return y, total


def rotary_angles(positions: Tensor, frequencies: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The angle is rounded to float32, as in the reference; cosine and sine of it are exact but for
    their last place, also at large positions."""
    tokens, half = positions.shape[0], frequencies.shape[0]
    cos, sin = empty((tokens, half), float32), empty((tokens, half), float32)
    if _rotary_angles(
        _contiguous(positions).data_ptr(),
        frequencies.data_ptr(),
        half,
        scale,
        cos.data_ptr(),
        sin.data_ptr(),
        tokens,
    ):
        raise NotRecordable(f"rotary_angles of {tokens} tokens")
    return cos, sin


def rotary(q_THD: Tensor, k_TKD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    if q_THD.stride(2) != 1 or k_TKD.stride(2) != 1:
        q_THD, k_TKD = _contiguous(q_THD), _contiguous(k_TKD)
    tokens, q_heads, head_dim = q_THD.shape
    k_heads = k_TKD.shape[1]
    q_rotated = empty((tokens, q_heads, head_dim), q_THD.dtype)
    k_rotated = empty((tokens, k_heads, head_dim), q_THD.dtype)
    q_stride, q_head_stride, _ = q_THD.stride()
    k_stride, k_head_stride, _ = k_TKD.stride()
    if _rotary(
        q_THD.data_ptr(),
        q_stride,
        q_head_stride,
        q_heads,
        q_rotated.data_ptr(),
        k_TKD.data_ptr(),
        k_stride,
        k_head_stride,
        k_heads,
        k_rotated.data_ptr(),
        _contiguous(cos).data_ptr(),
        _contiguous(sin).data_ptr(),
        head_dim,
        cos.shape[1],
        DTYPES[q_THD.dtype],
        tokens,
    ):
        raise NotRecordable(f"rotary of {tokens} tokens")
    return q_rotated, k_rotated


def silu_and_multiply(gate_up: Tensor) -> Tensor:
    stride, step = gate_up.stride()
    if step != 1:
        return silu_and_multiply(_contiguous(gate_up))
    tokens, width = gate_up.shape
    y = empty((tokens, width // 2), gate_up.dtype)
    kind = DTYPES[gate_up.dtype]
    if _silu_and_multiply(gate_up.data_ptr(), stride, y.data_ptr(), width // 2, kind, tokens):
        raise NotRecordable(f"silu_and_multiply of {tokens} tokens")
    return y


def gelu_tanh_and_multiply(gate_up: Tensor) -> Tensor:
    stride, step = gate_up.stride()
    if step != 1:
        return gelu_tanh_and_multiply(_contiguous(gate_up))
    tokens, width = gate_up.shape
    y = empty((tokens, width // 2), gate_up.dtype)
    kind = DTYPES[gate_up.dtype]
    if _gelu_tanh_and_multiply(gate_up.data_ptr(), stride, y.data_ptr(), width // 2, kind, tokens):
        raise NotRecordable(f"gelu_tanh_and_multiply of {tokens} tokens")
    return y


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """An id that is no row gives zeros; the core lets none through."""
    tokens, (rows, width) = ids.shape[0], weight.shape
    y = empty((tokens, width), weight.dtype)
    if _embedding(
        _contiguous(ids).data_ptr(),
        weight.data_ptr(),
        weight.stride(0),
        rows,
        y.data_ptr(),
        width,
        DTYPES[weight.dtype],
        tokens,
    ):
        raise NotRecordable(f"embedding of {tokens} tokens")
    return y


def _weight_dtype(weight: Tensor, x: Tensor) -> int:
    if weight.dtype != x.dtype and weight.dtype != float32:
        raise TypeError(f"a norm of {x.dtype} takes weights of it or of float32: {weight.dtype}")
    return DTYPES[weight.dtype]


def _contiguous(x: Tensor) -> Tensor:
    """x, or a copy, which a tape would not make again."""
    if x.is_contiguous():
        return x
    if recording():
        raise NotRecordable("a copy that makes a tensor contiguous")
    return x.contiguous()
