"""Named operations and the core's reference implementation of each: the oracle of platforms.

`fill(table)` registers the reference of every operation below with source "reference". A platform
registers better ones under the same names (`Platform.ops`). An operation is chosen when a layer is
built, `table.choose(name, **facts)`, and called in every step from then on.

T tokens, W width, H query heads, K key/value heads, D head dim, R rotated part of D, V vocabulary,
I input features, O output features, E experts, A experts active a token, F width of one expert,
M rows whose next token is chosen, N of them that draw it; P rows that are penalized, by the first
tokens of a row of a table [Q, L].
Activations have the layer's dtype, also as results, if nothing else is said.

====================== ==================================================== ====================
name                   signature                                            computed in
====================== ==================================================== ====================
rms_norm               (x[..., W], weight[W], eps) -> [..., W]              float32
add_rms_norm           (x[T, W], residual[T, W], weight[W], eps)            sum in the dtype of x,
                       -> (normed[T, W], x + residual)                      norm in float32
rotary_angles          (positions[T] int64, frequencies[R/2], scale)        float32, angles too
                       -> (cos, sin) of position * frequency, times scale,
                       [T, R/2] float32; frequencies are float32
rotary                 (q[T, H, D], k[T, K, D], cos[T, R/2], sin[T, R/2])   float32; cos and sin
                       -> (q, k); the halves 0:R/2 and R/2:R of each head   are float32
                       are rotated against each other (GPT-NeoX), R:D stays
silu_and_multiply      (x[T, 2F]) -> silu(x[:, :F]) * x[:, F:], [T, F]      dtype of x
gelu_tanh_and_multiply (x[T, 2F]) -> gelu(x[:, :F], tanh) * x[:, F:]        dtype of x
embedding              (ids[T] int64, weight[V, W]) -> [T, W]               exact
linear                 *factory*: (weight[O, I], bias[O] or None)           dtype of x, products
                       -> (x[..., I]) -> x @ weight.T + bias, [..., O]      summed in float32
tied_embedding         *factory*: (weight[V, W]) -> (look_up, linear), as    as those
                       embedding and linear with this weight, no bias
mixture_of_experts     *factory*: (gate_up[E, 2F, W], down[E, W, F])        dtype of x; the sum
                       -> (x[T, W], share[T, A] float32, ids[T, A] int64)   over experts float32
                       -> sum of share * (silu(gate) * up) @ down.T, [T, W]
argmax                 (scores[M, V] float32) -> (highest[M] float32,       exact
                       the lowest id that has it[M] int64); a row with a
                       NaN in it has highest NaN, and some id
sample                 (scores[M, V] float32, highest[M] float32,           float32; sums of
                       places[N], temperature[N], top_k[N], top_p[N],       weights as exact as
                       min_p[N], uniforms[N, 2]) -> ids[N] int64, drawn     `ops.filters` and
                       from the rows `places`, each at most once and        `ops.draw` have them
                       ascending, as `ops.filters` and `ops.draw` say;
                       all but scores and highest are numpy arrays on the
                       host: int64 places and top_k (0: off), else float32
penalize               (scores[M, V] float32, tokens[Q, L] int32 or     float32
                       int64, places[P], rows[P], lengths[P], firsts[P],
                       repetition[P], frequency[P], presence[P]) -> the
                       scores, changed in place: row places[p] by the first
                       lengths[p] (at least 1) tokens of tokens[rows[p]],
                       those from firsts[p] on output. All but the first two
                       are numpy arrays on the host: int64, of numbers
                       float32; places ascend. A score of such a token is
                       first times (if negative) or divided by repetition,
                       then lowered by frequency * occurrences in the output
                       + presence if there are any; at most float32's largest
====================== ==================================================== ====================

A *factory* is called once, when weights are loaded, and owns what it makes of them: it may keep the
tensor, prepack it, quantize it, or move it. The layer keeps no reference to what it handed over.

What `linear` and `tied_embedding` make may have a method `in_float32(x)`, with float32 results that
were not rounded to the dtype of x before. Logits are made by it.

Facts that `when` and `unless` are asked with (more may come: take `**_`): every operation gets
`dtype` ("float32", "bfloat16", "float16") and `device` (as torch spells it); beyond them

* rms_norm and add_rms_norm: `width`
* rotary_angles, rotary: `head_dim`, `rotary_dim`
* silu_and_multiply, gelu_tanh_and_multiply: `width` (F)
* embedding: `rows`, `width`
* tied_embedding: `rows`, `width`, `quantization`
* linear: `in_features`, `out_features`, `bias` (whether it has one), `quantization`
* argmax, sample, penalize: `vocab_size`; their dtype is always float32
* mixture_of_experts: `experts`, `width`, `expert_width`, `quantization`

`quantization` is None, or one of `Capabilities.quantization` ("int8", "int4", "fp8"): the factory
rounds the weights to so many bits, and what it returns (of `tied_embedding`, the linear part) says
in `num_bytes` how much memory it keeps. The reference has no such factory.
"""

from engine.ops import reference, sampling
from engine.platform.ops import OpTable

__all__ = ["fill"]


def fill(table: OpTable) -> None:
    """Register the reference implementation of every operation."""
    for function in (
        reference.rms_norm,
        reference.add_rms_norm,
        reference.rotary_angles,
        reference.rotary,
        reference.silu_and_multiply,
        reference.gelu_tanh_and_multiply,
        reference.embedding,
        reference.linear,
        reference.tied_embedding,
        reference.mixture_of_experts,
        sampling.argmax,
        sampling.sample,
        sampling.penalize,
    ):
        table.register(function.__name__, source="reference", unless=_refuses)(function)


def _refuses(*, quantization: str | None = None, **_: object) -> str | None:
    return None if quantization is None else f"it keeps weights as they are, not in {quantization}"
