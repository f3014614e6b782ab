"""What /metrics shows, under vLLM's names where the meaning is the same.

Dashboards and routers that were made for vLLM ask for exactly these. Gauges and running totals of
the engine are read from its `Stats` when somebody asks; what belongs to requests is counted here,
when it happens. Token counters agree with the `usage` that clients are told.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from engine.facts import EngineFacts, Stats
from engine.params import SamplingParams
from engine.request import Summary

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_FINISHED: Final = ("stop", "length", "abort", "error")
_METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))

# Seconds, but for the last two: tokens.
_TO_FIRST: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_BETWEEN: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5),
    *(0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_WHOLE: Final = (
    *(0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0),
    *(40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_TOKENS: Final = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))
_FEW: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self, model: str, facts: EngineFacts, stats: Callable[[], Stats]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(model, facts, stats))
        self._labels = {"model_name": model, "engine": "0"}
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of answered requests")
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated")
        success = Counter(
            "vllm:request_success",
            "Continuations that ended, by how",
            ("model_name", "engine", "finished_reason"),
            registry=self._registry,
        )
        self._finished = {
            reason: success.labels(**self._labels, finished_reason=reason) for reason in _FINISHED
        }
        self.to_first_token = self._histogram(
            "time_to_first_token_seconds", "From arrival to the first token", _TO_FIRST
        )
        self.between_tokens = self._histogram(
            "inter_token_latency_seconds", "Between a continuation's deliveries", _BETWEEN
        )
        self.per_token = self._histogram(
            "request_time_per_output_token_seconds", "Mean, of tokens after the first", _BETWEEN
        )
        self.whole = self._histogram("e2e_request_latency_seconds", "Arrival to end", _WHOLE)
        self.queued = self._histogram("request_queue_time_seconds", "Waiting", _WHOLE)
        self.prefill = self._histogram("request_prefill_time_seconds", "Computing it", _WHOLE)
        self.decode = self._histogram("request_decode_time_seconds", "After that", _WHOLE)
        self.inference = self._histogram("request_inference_time_seconds", "Both", _WHOLE)
        self.prompt_size = self._histogram("request_prompt_tokens", "Prompt tokens", _TOKENS)
        self.output_size = self._histogram("request_generation_tokens", "Tokens", _TOKENS)
        self.params_n = self._histogram("request_params_n", "n", _FEW)
        self.params_max_tokens = self._histogram(
            "request_params_max_tokens", "max_tokens, where one was given", _TOKENS
        )
        self.step_tokens = self._histogram("iteration_tokens_total", "Tokens a step", _TOKENS)
        self._answers = Counter(
            "http_requests",
            "HTTP answers",
            ("handler", "method", "status"),
            registry=self._registry,
        )
        self._answer_times = Histogram(
            "http_request_duration_seconds",
            "From the request's head to the answer's end",
            ("handler", "method"),
            buckets=_WHOLE,
            registry=self._registry,
        )

    def exposition(self) -> bytes:
        return generate_latest(self._registry)

    def count_finish(self, reason: str) -> None:
        self._finished[reason].inc()

    def count_step(self, stats: Stats) -> None:
        if stats.step_tokens:
            self.step_tokens.observe(stats.step_tokens)

    def count_answer(self, handler: str, method: str, status: int, seconds: float) -> None:
        """`handler` is a route's template, never a client's path: clients choose no labels."""
        method = method if method in _METHODS else "other"
        self._answers.labels(handler, method, f"{status // 100}xx").inc()
        self._answer_times.labels(handler, method).observe(seconds)

    def _counter(self, name: str, text: str) -> Counter:
        counter = Counter(f"vllm:{name}", text, tuple(self._labels), registry=self._registry)
        return counter.labels(**self._labels)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        histogram = Histogram(
            f"vllm:{name}", text, tuple(self._labels), buckets=buckets, registry=self._registry
        )
        return histogram.labels(**self._labels)


class Watch:
    """The times of one continuation, from its request's arrival on."""

    def __init__(self, metrics: Metrics, arrived: float) -> None:
        self._metrics = metrics
        self._arrived = arrived
        self._first = 0.0
        self._last = 0.0
        self.num_tokens = 0
        self.ended = False

    def tokens(self, count: int) -> None:
        now = time.monotonic()
        if self.num_tokens == 0:
            self._first = now
            self._metrics.to_first_token.observe(now - self._arrived)
        else:
            self._metrics.between_tokens.observe(now - self._last)
        self._last = now
        self.num_tokens += count
        self._metrics.generation_tokens.inc(count)

    def end(self, reason: str, summary: Summary | None = None) -> None:
        """Once: "stop", "length", "abort" or "error". A second call changes nothing."""
        if self.ended:
            return
        self.ended = True
        metrics = self._metrics
        metrics.count_finish(reason)
        if reason in ("abort", "error"):
            return
        metrics.whole.observe(time.monotonic() - self._arrived)
        metrics.output_size.observe(self.num_tokens)
        if self.num_tokens > 1:
            metrics.per_token.observe((self._last - self._first) / (self.num_tokens - 1))
        if summary is not None:
            metrics.queued.observe(summary.queued_s)
            metrics.prefill.observe(summary.prefill_s)
            metrics.decode.observe(summary.decode_s)
            metrics.inference.observe(summary.prefill_s + summary.decode_s)


def count_prompt(metrics: Metrics, num_tokens: int, params: SamplingParams) -> None:
    """A prompt whose request was accepted, once for all of its continuations."""
    metrics.prompt_tokens.inc(num_tokens)
    metrics.prompt_size.observe(num_tokens)
    metrics.params_n.observe(params.n)
    if params.max_tokens is not None:
        metrics.params_max_tokens.observe(params.max_tokens)


class _EngineCollector(Collector):
    def __init__(self, model: str, facts: EngineFacts, stats: Callable[[], Stats]) -> None:
        self._labels = {"model_name": model, "engine": "0"}
        self._facts = facts
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        usage = stats.num_blocks_held / stats.num_blocks if stats.num_blocks else 0.0
        for name, text, value in (
            ("num_requests_running", "Continuations in the running batch", stats.num_running),
            ("num_requests_waiting", "Continuations waiting", stats.num_waiting),
            ("kv_cache_usage_perc", "Share of KV blocks in use, from 0 to 1", usage),
        ):
            gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=tuple(self._labels))
            gauge.add_metric(tuple(self._labels.values()), value)
            yield gauge
        for name, text, value in (
            ("num_preemptions", "Continuations put back to wait", stats.num_preemptions),
            ("prefix_cache_queries", "Prompt tokens looked up", stats.prefix_queries),
            ("prefix_cache_hits", "Prompt tokens found", stats.prefix_hits),
        ):
            counter = CounterMetricFamily(f"vllm:{name}", text, labels=tuple(self._labels))
            counter.add_metric(tuple(self._labels.values()), value)
            yield counter
        text = "Programs that the device compiled; should not rise after the start"
        compiled = CounterMetricFamily("engine:programs_compiled", text, labels=tuple(self._labels))
        compiled.add_metric(tuple(self._labels.values()), stats.num_compiled)
        yield compiled
        yield self._cache_config()

    def _cache_config(self) -> Metric:
        labels = {
            **self._labels,
            "block_size": str(self._facts.block_size),
            "num_gpu_blocks": str(self._facts.num_blocks),  # vLLM's label, whatever the device
            "enable_prefix_caching": str(self._facts.prefix_caching),
            "cache_dtype": self._facts.dtype,
        }
        info = GaugeMetricFamily("vllm:cache_config_info", "The KV cache", labels=tuple(labels))
        info.add_metric(tuple(labels.values()), 1.0)
        return info
