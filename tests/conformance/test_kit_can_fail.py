"""A kit that never fails proves nothing: each check here meets a platform broken on purpose.

The same check passes on the platform that is right.
"""

import time
from dataclasses import replace

import pytest
import torch
from broken_platforms import with_attention, with_platform
from fusing import forward_packed

from engine.platform import Availability, Capabilities, MemorySnapshot
from engine.testing.checks import Status
from engine.testing.null import NullPlatform, NullRunner, null_spec

# Discovery


def test_a_wrong_contract_version_is_found(assert_found, good):
    broken = replace(good, api=(2, 0))
    assert_found("discovery/speaks-this-contract", broken, "written for contract 2.0")


def test_a_name_that_the_command_line_cannot_take_is_found(assert_found, good):
    broken = replace(good, name="Acme:NPU")
    assert_found("discovery/has-a-proper-name", broken, "must match")


def test_two_names_are_found(assert_found, good):
    broken = with_platform(good, name="other")
    assert_found("discovery/has-one-name", broken, "the platform 'other'")


def test_a_probe_that_raises_is_found(assert_found, good):
    def probe():
        raise OSError("no such driver")

    case = "discovery/probe-answers-quickly-and-always-the-same"
    assert_found(case, replace(good, probe=probe), "no such driver")


def test_a_probe_that_says_nothing_is_found(assert_found, good):
    case = "discovery/probe-answers-quickly-and-always-the-same"
    assert_found(case, replace(good, probe=lambda: Availability(1)), "`detail` is empty")


def test_a_setting_that_does_not_exist_is_found(assert_found, good):
    broken = replace(good, defaults=lambda: {"warp_factor": 9})
    # Making the platform needs its defaults, so nothing else can be said of it.
    assert_found("discovery/prefers-settings-that-exist", broken, "warp_factor")


def test_an_unknown_dtype_is_found(assert_found, good):
    broken = with_platform(good, capabilities=Capabilities(dtypes=("float12",)))
    assert_found("discovery/declares-sensible-capabilities", broken, "float12")


def test_a_device_without_an_index_is_found(assert_found, good):
    broken = with_platform(good, device=property(lambda self: "cpu"))
    assert_found("discovery/names-its-device-with-an-index", broken, "'cpu' must be like 'name:0'")


def test_a_plugin_that_imports_torch_and_the_contract_version_is_found(
    judge, good, tmp_path, monkeypatch
):
    (tmp_path / "engine_hasty.py").write_text(
        "import torch\n"
        "from engine.platform import API_VERSION, PlatformSpec\n"
        "import engine_acme_npu\n"
        "def probe():\n    return engine_acme_npu.probe()\n"
        "def create(config, rank):\n    return engine_acme_npu.create(config, rank)\n"
        "spec = PlatformSpec(name='acme', api=API_VERSION, probe=probe, create=create)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    import engine_hasty

    for case, reason in (
        ("discovery/imports-no-driver", "imports numpy, torch"),
        ("discovery/states-the-version-as-a-literal", "not API_VERSION"),
    ):
        assert judge(case, good).status is Status.PASSED
        found = judge(case, engine_hasty.spec)
        assert found.status is Status.FAILED
        assert reason in found.reason


# Memory


class Liar:
    """Says that it measures, and always sees the same."""

    kind = "measured"

    def __init__(self, **numbers):
        self.numbers = {"total": 2**31, "free": 2**30, "used": 2**20, "peak": 2**20, **numbers}

    def snapshot(self):
        return MemorySnapshot(**self.numbers)

    def measure(self):
        return pytest.MonkeyPatch.context()

    def release_cached(self):
        return None


def test_memory_that_does_not_add_up_is_found(assert_found, good):
    broken = with_platform(good, memory=lambda self: Liar(free=2**40))
    assert_found("memory/snapshot-adds-up", broken, "free memory is out of range")


def test_a_profiler_that_sees_no_allocation_is_found(judge, good):
    broken = with_platform(good, memory=lambda self: Liar())
    assert judge("memory/measure-sees-an-allocation", broken).status is Status.FAILED
    found = judge("memory/what-is-held-counts-as-used", broken)
    assert "`used` rose by 0" in found.reason


# Operations


def test_an_operation_with_a_wrong_result_is_found(assert_found, good):
    def ops(self, table):
        @table.register("rms_norm", source="broken", priority=99)
        def rms_norm(x, weight, eps):
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (1 + weight)

    assert_found("ops/rms_norm/float32", with_platform(good, ops=ops), "over the tolerance")


def test_an_operation_that_gives_another_dtype_is_found(assert_found, good):
    def ops(self, table):
        reference = table.reference("silu_and_multiply")

        @table.register("silu_and_multiply", source="broken", priority=99)
        def silu_and_multiply(x):
            return reference(x.float())

    broken = with_platform(good, ops=ops)
    assert_found("ops/silu_and_multiply/bfloat16", broken, "torch.float32 for bfloat16")


@pytest.mark.parametrize("name", ["linear", "tied_embedding"])
def test_logits_that_were_rounded_all_the_same_are_found(name, assert_found, good):
    def offering(result):
        class Offers:
            def __init__(self, packed):
                self.packed = packed

            def __call__(self, x):
                return self.packed(x)

            def in_float32(self, x):
                return result(self.packed, x)

        def ops(self, table):
            make = table.reference(name)

            @table.register(name, source="acme", priority=99)
            def offered(*weights):
                made = make(*weights)
                return (made[0], Offers(made[1])) if isinstance(made, tuple) else Offers(made)

        return with_platform(good, ops=ops)

    case, rounded = f"ops/{name}/bfloat16", offering(lambda packed, x: packed(x).float())
    assert_found(case, rounded, f"in_float32 of {name} is off")
    assert_found(case, offering(lambda packed, x: packed(x)), "gave torch.bfloat16")


def test_a_platform_that_poses_as_the_reference_is_found(assert_found, good):
    def ops(self, table):
        table.register("linear", source="reference", priority=1)(lambda weight, bias: None)

    broken = with_platform(good, ops=ops)
    assert_found("ops/names-only-its-own", broken, "use its own name")


def rounding_linear(levels):
    """Registers `linear` with weights rounded to so many levels on each side of zero."""

    def ops(self, table):
        @table.register("linear", source="acme", priority=99, when=lambda quantization, **_: True)
        def linear(weight, bias):
            step = weight.float().abs().amax(1, keepdim=True) / levels
            rounded = (weight.float() / step).round() * step
            return lambda x: (x.float() @ rounded.T).to(x.dtype)

    return ops


def test_weights_rounded_more_than_their_bits_ask_for_are_found(assert_found, good):
    declared = Capabilities(dtypes=("float32", "bfloat16"), quantization=frozenset({"int8"}))
    right = with_platform(good, capabilities=declared, ops=rounding_linear(127))
    broken = with_platform(good, capabilities=declared, ops=rounding_linear(31))
    case = "ops/quantized-int8/linear-float32"
    assert_found(case, broken, "over the tolerance", good=right)


# Attention


def attend_with(**changes):
    """The good backend's `_attend`, for a spec with changes."""

    def attend(self, q, cache, blocks, length):
        from engine_acme_npu.attention import AcmeAttention

        other = AcmeAttention(replace(self.spec, **changes), self.device)
        return other._attend(q, cache, blocks, length)

    return attend


def test_a_wrong_softmax_scale_is_found(assert_found, good):
    broken = with_attention(good, _attend=attend_with(scale=0.1))
    assert_found("attention/float32/length-17", broken, "over the tolerance")


def test_a_window_that_is_ignored_is_found(assert_found, good):
    broken = with_attention(good, _attend=attend_with(window=None))
    assert_found("attention/bfloat16/window-16", broken, "over the tolerance")


def test_a_window_that_is_one_too_wide_is_found(assert_found, good):
    broken = with_attention(good, _attend=attend_with(window=17))
    assert_found("attention/float32/window-16", broken, "over the tolerance")


@pytest.mark.parametrize("name", ["rotary", "norm-and-rotary", "partial-rotary"])
def test_a_prologue_that_is_left_out_or_half_done_is_found(name, assert_found, good):
    def fuses(self, prologue):
        return True

    def without_norm(self, packed, prologue, cache, plan):
        return forward_packed(self, packed, replace(prologue, norm_epsilon=None), cache, plan)

    def without_rotary(self, packed, prologue, cache, plan):
        still = replace(packed, cos_TR=packed.cos_TR**0, sin_TR=packed.sin_TR * 0)
        return forward_packed(self, still, prologue, cache, plan)

    right = with_attention(good, fuses=fuses, forward_packed=forward_packed)
    wrong = without_norm if name == "norm-and-rotary" else without_rotary
    broken = with_attention(good, fuses=fuses, forward_packed=wrong)
    case = f"attention/float32/prologue-{name}"
    assert_found(case, broken, "over the tolerance", good=right)


def test_a_platform_without_a_prologue_of_its_own_is_not_asked_for_one(judge, good):
    found = judge("attention/float32/prologue-rotary", good)
    assert found.status is Status.SKIPPED
    assert "leaves this to the model" in found.reason


def test_an_engine_whose_attention_does_the_prologue_answers_the_same(judge, good):
    asked = []

    def fuses(self, prologue):
        asked.append(prologue)
        return True

    fused = with_attention(good, fuses=fuses, forward_packed=forward_packed)
    found = judge("runner/float32/batched", fused)
    assert found.status is Status.PASSED, found.reason
    assert asked


def clear_instead_of_copying(self, cache, pairs):
    """Not left as they are: what is there might be right by chance, or no number."""
    cache = cache.take()
    for _, target in pairs:
        cache.k_NKDS[target] = cache.v_NKSD[target] = 0.0
    return cache


def test_copying_nothing_is_found(assert_found, good):
    broken = with_attention(good, copy_blocks=clear_instead_of_copying)
    assert_found("attention/float32/copy-many", broken, "over the tolerance")
    assert_found("attention/float32/copy-on-write", broken, "over the tolerance")


def test_copying_the_wrong_way_round_is_found(assert_found, good):
    def copy_blocks(self, cache, pairs):
        from engine_acme_npu.attention import AcmeAttention

        swapped = [(target, source) for source, target in pairs]
        return AcmeAttention.copy_blocks(self, cache, swapped)

    broken = with_attention(good, copy_blocks=copy_blocks)
    assert_found("attention/bfloat16/copy-many", broken, "over the tolerance")


def test_reading_beyond_the_length_is_found(assert_found, good):
    def attend(self, q, cache, blocks, length):
        """Masks by adding, so that what others left in the block leaks when it is no number."""
        from engine_acme_npu.attention import AcmeAttention

        right = AcmeAttention._attend(self, q, cache, blocks, length)
        rest = cache.v_NKSD[blocks].transpose(0, 1).flatten(1, 2)[:, length:].float()
        return right + (rest * 0).sum()

    broken = with_attention(good, _attend=attend)
    assert_found("attention/float32/poisoned", broken, "error inf")


def test_refusing_what_every_model_needs_is_found(assert_found, good):
    def attention(self, spec):
        from engine.errors import UnsupportedError

        raise UnsupportedError("it is too warm today")

    broken = with_platform(good, attention=attention)
    assert_found("attention/float32/length-1", broken, "too warm")


# Runner and scheduler


def test_a_model_with_wrong_logits_is_found(assert_found, good):
    broken = with_attention(good, _attend=attend_with(scale=0.2))
    assert_found("runner/float32/batched", broken, "over the tolerance")


def test_siblings_that_write_into_each_other_are_found(assert_found, good):
    broken = with_attention(good, copy_blocks=clear_instead_of_copying)
    assert_found("runner/float32/siblings", broken, "over the tolerance")


class Stutter(NullRunner):
    """Says a token twice, now and then."""

    def _after(self, token):
        return token if token % 7 == 0 else token + 1


class StutterPlatform(NullPlatform):
    def runner(self):
        return Stutter(self.config.num_blocks or 64, block_size=self.config.block_size or 16)


@pytest.mark.parametrize(
    "case", ["runner/float32/alone", "runner/bfloat16/preempted", "scheduler/random-1-overlapped"]
)
def test_a_runner_that_says_wrong_tokens_is_found(judge, case):
    assert judge(case, null_spec(), counts_up=True).status is Status.PASSED
    found = judge(case, replace(null_spec(), create=StutterPlatform), counts_up=True)
    assert found.status is Status.FAILED
    assert "inf" in found.reason


def test_a_runner_that_never_answers_is_found(judge, monkeypatch):
    class Mute(NullRunner):
        def _answer(self, known, part):
            answer = super()._answer(known, part)
            return replace(answer, tokens=())

    class MutePlatform(NullPlatform):
        def runner(self):
            return Mute(self.config.num_blocks or 64)

    found = judge("runner/float32/alone", replace(null_spec(), create=MutePlatform), counts_up=True)
    assert found.status is Status.FAILED


# Performance


def test_an_operation_far_below_the_device_s_own_rate_is_found(assert_found, good):
    def ops(self, table):
        reference = table.reference("linear")

        @table.register("linear", source="broken", priority=99)
        def linear(weight, bias):
            exact = reference(weight, bias)

            def late(x):
                time.sleep(1.0)
                return exact(x)

            return late

    broken = with_platform(good, ops=ops)
    assert_found("perf/skinny-linear", broken, "at least 10% is asked for")
