"""Why an engine would be put together as it is: every setting, and every part, with its reasons.

Follows `engine.assemble`, and stops before any weight is loaded. Imports no torch before the
platform's environment is set.
"""

import os
from collections.abc import Mapping
from typing import Any

from engine import assemble
from engine.config import resolve
from engine.explain.findings import Explanation, Part, Refusal, Setting
from engine.explain.parts import LOADED, NOT_ASKED, ON_SHAPES, RANK, explain_parts
from engine.explain.settings import explain_settings
from engine.models import read_facts
from engine.plugins import PluginManager

__all__ = [
    "LOADED",
    "NOT_ASKED",
    "ON_SHAPES",
    "Explanation",
    "Part",
    "Refusal",
    "Setting",
    "explain",
]


def explain(settings: Mapping[str, Any], plugins: PluginManager | None = None) -> Explanation:
    """What `assemble(settings)` would choose, and why.

    Raises:
        ConfigError, PluginError, ModelError, UnsupportedError: as `assemble`; but that no attention
            backend serves a layer is an answer.
    """
    plugins = plugins or PluginManager()
    spec = plugins.select(str(settings.get("device", "auto")))
    resolved = resolve(settings, plugins.defaults(spec))
    plugins.hook.engine_check_config(config=resolved.config)
    if resolved.config.tensor_parallel > 1:
        assemble.check_ranks(resolved.config, plugins.find(spec.name).availability)
    model = read_facts(resolved.config)
    for name, value in plugins.environment(spec, RANK).items():
        os.environ.setdefault(name, value)
    platform = plugins.create_platform(spec, resolved.config, RANK)
    try:
        assemble.check_world(resolved.config, platform)
        chosen = assemble.choose(resolved.config, model, platform.capabilities)
        buckets = assemble.find_buckets(resolved.config, platform, model, chosen)
        basis, parts = explain_parts(resolved.config, platform, model, chosen, buckets, plugins)
        return Explanation(
            model=model,
            platform=spec.name,
            package=plugins.find(spec.name).package,
            device=platform.device,
            basis=basis,
            settings=tuple(explain_settings(resolved, spec, platform, model, chosen, buckets)),
            parts=tuple(parts),
        )
    finally:
        platform.close()
