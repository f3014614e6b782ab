"""A trained model's published text, greedily, and its weights rearranged as other families."""

import json

import pytest

from .families import load
from .oracle import Cache, run


@pytest.mark.parametrize("variant", ["", "-mistral", "-qwen2", "-phi3", "-mixtral-same"])
def test_every_arrangement_tells_the_published_story(shared, variant):
    cases = json.loads((shared / "models/stories260K/expected.json").read_text())["cases"]
    model = load(shared / f"models/stories260K{variant}")
    cases = [case for case in cases.values() if len(case["output_ids"]) > 100]
    assert len(cases) == 3
    caches = [Cache() for _ in cases]
    told = [[] for _ in cases]
    turn = [case["prompt_ids"] for case in cases]
    for _ in range(max(len(case["output_ids"]) for case in cases)):
        logits = run(model, list(zip(caches, turn, strict=True)))
        turn = [[int(rows[-1].argmax())] for rows in logits]
        for story, token in zip(told, turn, strict=True):
            story += token
    for story, case in zip(told, cases, strict=True):
        assert story[: len(case["output_ids"])] == case["output_ids"]
