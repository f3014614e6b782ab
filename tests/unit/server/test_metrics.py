"""/metrics: vLLM's names, with values that agree with what clients were told."""

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from engine.facts import Stats

#: What vLLM's own dashboards ask for (labels: model_name, engine).
DASHBOARD = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:num_preemptions_total",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:request_time_per_output_token_seconds_bucket",
    "vllm:e2e_request_latency_seconds_bucket",
    "vllm:request_queue_time_seconds_bucket",
    "vllm:request_prefill_time_seconds_bucket",
    "vllm:request_decode_time_seconds_bucket",
    "vllm:request_inference_time_seconds_bucket",
    "vllm:request_prompt_tokens_bucket",
    "vllm:request_generation_tokens_bucket",
    "vllm:request_params_n_bucket",
    "vllm:request_params_max_tokens_bucket",
    "vllm:iteration_tokens_total_bucket",
    "vllm:cache_config_info",
)


def test_dashboards_find_every_name_from_the_start(start: Any) -> None:
    server = start()
    text = server.http.get("/metrics").text
    samples = {
        sample.name: sample.labels
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    for name in DASHBOARD:
        assert samples[name]["model_name"] == "counting/model", name
        assert samples[name]["engine"] == "0"
    assert samples["vllm:cache_config_info"]["block_size"] == "16"


def test_token_counters_equal_the_sum_of_usage(start: Any) -> None:
    server = start()
    usages = [
        server.post("/v1/completions", body).json()["usage"]
        for body in (
            {"prompt": "abc", "max_tokens": 5},
            {"prompt": ["a", "bc"], "n": 2, "max_tokens": 3},
            {"prompt": "a", "stop": "de"},
            {"prompt": "v"},
        )
    ]
    prompt = sum(usage["prompt_tokens"] for usage in usages)
    output = sum(usage["completion_tokens"] for usage in usages)
    assert server.total("vllm:prompt_tokens_total") == prompt
    assert server.total("vllm:generation_tokens_total") == output
    assert server.total("vllm:request_generation_tokens_sum") == output
    assert server.total("vllm:request_prompt_tokens_count") == 5
    assert server.total("vllm:request_success_total", finished_reason="length") == 5
    assert server.total("vllm:request_success_total", finished_reason="stop") == 2
    assert server.total("vllm:time_to_first_token_seconds_count") == 7
    assert server.total("vllm:inter_token_latency_seconds_count") == output - 7
    assert server.total("vllm:request_queue_time_seconds_count") == 6  # of all the engine ended


def test_answers_are_counted_by_route_and_clients_choose_no_labels(start: Any) -> None:
    server = start()
    server.post("/v1/completions", {"prompt": "a"})
    server.post("/v1/completions", {"prompt": -1})
    for path in ("/nothing", "/v1/nothing", "/v1/models/a", "/v1/models/b"):
        server.http.get(path)
    server.http.request("PURGE", "/health")
    name = "http_requests_total"
    assert server.total(name, handler="/v1/completions", status="2xx") == 1
    assert server.total(name, handler="/v1/completions", status="4xx") == 1
    assert server.total(name, handler="none") == 2
    assert server.total(name, handler="/v1/models/{name:path}", status="4xx") == 2
    assert server.total(name, method="other") == 1
    text = server.http.get("/metrics").text
    assert "nothing" not in text
    assert "PURGE" not in text


def test_steps_are_counted_as_the_engine_reports_them(start: Any) -> None:
    server = start()
    for tokens in (5, 0, 7):
        server.call(lambda tokens=tokens: server.engine.on_stats(Stats(step_tokens=tokens)))
    assert server.total("vllm:iteration_tokens_total_count") == 2
    assert server.total("vllm:iteration_tokens_total_sum") == 12
