"""The inner loop of every linear layer: a tile of weights, whatever their form, times a tile of
activations.

The weights are the left operand, [O, K] @ [K, M]: tiles stay wide where there are few rows of
activations, and what is rounded becomes floating point in the registers of the left operand.

Forms of weights (`engine_triton.linear.weights`), all with K contiguous:

* "plain": of the activations' dtype
* "rows": int8 or fp8; one scale a row, which the caller multiplies with at the end
* "blocks": fp8; one scale for GROUP x GROUP weights
* "groups": 4 bits; a scale, and maybe a zero point, for GROUP weights of a row

Fp8 comes as uint8 where the chip has no such type: the bits are taken apart.

Shape legend: O output features, M rows of activations, K input features, of a tile each.
"""

import triton
import triton.language as tl


@triton.jit
def widened(levels, like: tl.constexpr):
    """int8, fp8, or the bits of e4m3 (uint8), in the dtype `like`. Exact in bf16 and fp16."""
    if levels.dtype == tl.uint8:
        bits = levels.to(tl.int32)
        # Its 4 bits of exponent and 3 of mantissa, where float32 has the lowest and highest ones of
        # them: right but for the exponents' offsets, 127 and 7, also where e4m3 is subnormal.
        placed = ((bits & 0x80) << 24) | ((bits & 0x7F) << 20)
        wide = (
            placed.to(tl.float32, bitcast=True) * 1329227995784915872903807060280344576.0
        )  # 2^120
    else:
        wide = levels.to(tl.float32)
    return wide.to(like)


@triton.jit
def accumulate(
    total_OM,
    x,
    x_scales,
    x_rows_M,
    x_scale_rows_M,
    w,
    scales,
    zeros,
    w_rows_O,
    w_stride,
    first,
    last,
    inputs,
    FORM: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """`total_OM` plus the products over `first` to `last` of the input features.

    Args:
        x, x_rows_M: activations, and where each row begins, in elements (int64).
        x_scales, x_scale_rows_M: of fp8 activations in "blocks" form, where each row's begin.
        w, w_rows_O, w_stride: weights, the rows of them (int64), and elements from row to row.
        EVEN: whether BLOCK_K divides `inputs`.
    """
    if FORM == "groups":
        total_OM = _accumulate_groups(
            total_OM, x, x_rows_M, w, scales, zeros, w_rows_O, w_stride, first, last, inputs,
            GROUP, EVEN, BLOCK_K,
        )  # fmt: skip
    else:
        in_block = tl.arange(0, BLOCK_K)
        w_at_O1 = w + (w_rows_O * w_stride)[:, None]
        x_at_1M = x + x_rows_M[None, :]
        for start in range(first, last, BLOCK_K):
            at_K = start + in_block
            if EVEN:
                w_OK = tl.load(w_at_O1 + at_K[None, :])
                x_KM = tl.load(x_at_1M + at_K[:, None])
            else:
                w_OK = tl.load(w_at_O1 + at_K[None, :], mask=at_K[None, :] < inputs, other=0.0)
                x_KM = tl.load(x_at_1M + at_K[:, None], mask=at_K[:, None] < inputs, other=0.0)
            if x.dtype.element_ty != w.dtype.element_ty:
                w_OK = widened(w_OK, x.dtype.element_ty)
            if FORM == "blocks":
                blocks = tl.cdiv(inputs, GROUP)
                scale_O = tl.load(scales + w_rows_O // GROUP * blocks + start // GROUP)
                part_OM = tl.dot(w_OK, x_KM, input_precision="ieee") * scale_O[:, None]
                if x_scales is not None:
                    scale_M = tl.load(x_scales + x_scale_rows_M + start // GROUP)
                    part_OM *= scale_M[None, :]
                total_OM += part_OM
            elif x.dtype.element_ty.primitive_bitwidth == 8:
                # Summed apart: within a product of fp8, some chips keep few bits of the sum.
                total_OM += tl.dot(w_OK, x_KM)
            else:
                total_OM = tl.dot(w_OK, x_KM, total_OM, input_precision="ieee")
    return total_OM


@triton.jit
def _accumulate_groups(
    total_OM, x, x_rows_M, w, scales, zeros, w_rows_O, w_stride, first, last, inputs,
    GROUP: tl.constexpr, EVEN: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Bytes hold two weights: low halves the first half of a group, high ones the second."""
    HALF: tl.constexpr = GROUP // 2
    GROUPS: tl.constexpr = BLOCK_K // GROUP
    byte_B = tl.arange(0, BLOCK_K // 2)
    low_B = byte_B // HALF * GROUP + byte_B % HALF  # the input feature of a byte's low half
    group_G = tl.arange(0, GROUPS)
    num_groups = tl.cdiv(inputs, GROUP)
    w_at_O1 = w + (w_rows_O * w_stride)[:, None]
    scales_at_O1 = (w_rows_O * num_groups)[:, None]
    x_at_1M = x + x_rows_M[None, :]
    for start in range(first, last, BLOCK_K):
        at_OG = scales_at_O1 + start // GROUP + group_G[None, :]
        if EVEN:
            levels_OB = tl.load(w_at_O1 + start // 2 + byte_B[None, :])
            scale_OG = tl.load(scales + at_OG)
            low_BM = tl.load(x_at_1M + start + low_B[:, None])
            high_BM = tl.load(x_at_1M + start + HALF + low_B[:, None])
        else:
            there_B = start // 2 + byte_B < num_groups * HALF
            there_G = start // GROUP + group_G < num_groups
            levels_OB = tl.load(w_at_O1 + start // 2 + byte_B[None, :], there_B[None, :], 0)
            scale_OG = tl.load(scales + at_OG, there_G[None, :], 0.0)
            low_K = start + low_B
            low_BM = tl.load(x_at_1M + low_K[:, None], low_K[:, None] < inputs, 0.0)
            high_BM = tl.load(x_at_1M + HALF + low_K[:, None], low_K[:, None] + HALF < inputs, 0.0)
        scale_OB = _each_byte(scale_OG.to(tl.float32), HALF)
        if zeros is None:
            zero_OB = 8.0
        elif EVEN:
            zero_OB = _each_byte(tl.load(zeros + at_OG).to(tl.float32), HALF)
        else:
            zero_OB = _each_byte(tl.load(zeros + at_OG, there_G[None, :], 0).to(tl.float32), HALF)
        like: tl.constexpr = x.dtype.element_ty
        low_OB = (((levels_OB & 15).to(tl.float32) - zero_OB) * scale_OB).to(like)
        high_OB = (((levels_OB >> 4).to(tl.float32) - zero_OB) * scale_OB).to(like)
        total_OM = tl.dot(low_OB, low_BM, total_OM, input_precision="ieee")
        total_OM = tl.dot(high_OB, high_BM, total_OM, input_precision="ieee")
    return total_OM


@triton.jit
def _each_byte(value_OG, HALF: tl.constexpr):
    """[O, G] -> [O, G * HALF], each value HALF times."""
    rows: tl.constexpr = value_OG.shape[0]
    groups: tl.constexpr = value_OG.shape[1]
    value_OGB = tl.broadcast_to(value_OG[:, :, None], (rows, groups, HALF))
    return tl.reshape(value_OGB, (rows, groups * HALF))
