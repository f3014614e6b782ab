from typing import Any

import pytest

from engine.errors import ConfigError
from engine.server import ServerOptions


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"port": 65536}, "port"),
        ({"port": -1}, "port"),
        ({"log_level": "loud"}, "log_level"),
        ({"shutdown_timeout_s": -1}, "shutdown_timeout_s"),
        ({"linger_s": float("nan")}, "linger_s"),
        ({"body_timeout_s": float("inf")}, "body_timeout_s"),
        ({"max_queue": 0}, "max_queue"),
        ({"max_body_bytes": 0}, "max_body_bytes"),
        ({"api_keys": ("good", "")}, "API key"),
        ({"served_model_names": ("",)}, "model name"),
    ],
)
def test_options_out_of_range_are_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ServerOptions(**fields)
