"""What the device can do at best, on random numbers: zeros run faster than real data."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch

from accelerator.floors import Ceilings
from accelerator.job import Job, Measure
from accelerator.records import Fact, Record
from accelerator.timing import Call, time_calls, time_host

GIB = 1 << 30
FORMAT = "fp8 format"  # the fact that names it, as torch does
FP8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)  # whichever the device multiplies


def measures(job: Job) -> list[Measure]:
    parts: dict[str, Callable[[Job], Iterator[Record]]] = {
        "memory": memory,
        "bf16": bf16,
        "fp8": fp8,
        "boundary": boundary,
        "host": host,
    }
    return [Measure(name, partial(part, job), estimate_s=3) for name, part in parts.items()]


def of(facts: Mapping[str, str | float]) -> Ceilings:
    """From the facts of this part.

    Raises:
        LookupError: a ceiling was not measured.
    """

    def number(name: str) -> float:
        if name not in facts:
            raise LookupError(
                f"there is no floor without the ceiling {name!r}: it was not measured"
            )
        return float(facts[name])

    return Ceilings(
        bytes_per_s=1e9 * max(number("copy, GB/s"), number("read, GB/s")),
        bf16_flops=1e12 * number("bf16 matrix product, TFLOP/s"),
        fp8_flops=1e12 * number("fp8 matrix product, TFLOP/s")
        if "fp8 matrix product, TFLOP/s" in facts
        else None,
        memory_bytes=1e9 * number("memory, GB"),
    )


def memory(job: Job) -> Iterator[Record]:
    """Copying counts what is read and what is written."""
    size = GIB if job.full else 1 << 20
    yield Fact("memory, GB", _total(job) / 1e9)
    source = torch.randn(size // 4, device=job.device)
    target = torch.empty_like(source)
    seconds = time_calls([partial(target.copy_, source)], job.device).seconds
    yield Fact("copy, GB/s", 2 * source.nbytes / seconds / 1e9)
    other = torch.randn_like(source)
    ways: list[tuple[int, list[Call]]] = [
        (source.nbytes, [source.sum]),
        (source.nbytes, [source.amax]),
        (2 * source.nbytes, [partial(torch.dot, source, other)]),
    ]
    rates = [count / time_calls(calls, job.device).seconds for count, calls in ways]
    yield Fact("read, GB/s", max(rates) / 1e9)


def bf16(job: Job) -> Iterator[Record]:
    side = job.pick(8192, 64)
    a, b = (torch.randn(side, side, device=job.device).bfloat16() for _ in range(2))
    seconds = time_calls([partial(torch.mm, a, b)], job.device).seconds
    yield Fact("bf16 matrix product, TFLOP/s", 2 * side**3 / seconds / 1e12)


def fp8(job: Job) -> Iterator[Record]:
    side = job.pick(8192, 64)
    one = torch.ones((), device=job.device)
    reasons = []
    for dtype in FP8:
        a, b = (torch.randn(side, side, device=job.device).to(dtype) for _ in range(2))
        product = partial(torch._scaled_mm, a, b.t(), one, one, out_dtype=torch.bfloat16)
        try:
            seconds = time_calls([product], job.device).seconds
        except (RuntimeError, ValueError, NotImplementedError) as error:
            reasons.append(str(error).splitlines()[0])
            continue
        yield Fact("fp8 matrix product, TFLOP/s", 2 * side**3 / seconds / 1e12)
        yield Fact(FORMAT, str(dtype).removeprefix("torch."))
        return
    yield Fact("no fp8 matrix product", "; ".join(dict.fromkeys(reasons)))


def boundary(job: Job) -> Iterator[Record]:
    """What a kernel costs that does next to nothing: in a graph, and launched by the host."""
    x = torch.zeros(1, device=job.device)
    calls = [partial(x.add_, 1)] * job.pick(1000, 10)
    yield Fact("kernel boundary in a graph, us", 1e6 * time_calls(calls, job.device).seconds)

    def launch() -> None:
        for call in calls:
            call()

    seconds = time_host(launch, job.synchronize)
    yield Fact("kernel launched by the host, us", 1e6 * seconds / len(calls))


def host(job: Job) -> Iterator[Record]:
    """Over the link, from and to pinned memory; and how long the smallest answer takes."""
    on_device = torch.randn(job.pick(GIB // 16, 1 << 10), device=job.device)
    on_host = torch.empty(on_device.shape, pin_memory=job.on_gpu)
    for name, call in (
        ("to the host, GB/s", partial(on_host.copy_, on_device, non_blocking=True)),
        ("from the host, GB/s", partial(on_device.copy_, on_host, non_blocking=True)),
    ):
        yield Fact(name, on_device.nbytes / time_host(call, job.synchronize) / 1e9)
    began = time.perf_counter()
    for _ in range(100):
        on_device[0].item()
    yield Fact("one number to the host, us", 1e4 * (time.perf_counter() - began))


def _total(job: Job) -> int:
    if job.on_gpu:
        return torch.cuda.get_device_properties(job.device).total_memory
    return 1 << 30
