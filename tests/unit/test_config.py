import dataclasses
from typing import Any

import pytest

from engine.config import DeviceChoice, EngineConfig, resolve
from engine.errors import ConfigError


def test_the_users_settings_win_over_the_platforms_and_those_over_the_defaults() -> None:
    resolved = resolve({"block_size": 8}, {"block_size": 32, "overlap": False})
    assert resolved.config == EngineConfig(block_size=8, overlap=False)


def test_who_decided_each_setting_is_remembered() -> None:
    provenance = resolve({"block_size": 8}, {"block_size": 32, "overlap": False}).provenance
    assert provenance["block_size"] == "user"
    assert provenance["overlap"] == "platform"
    assert provenance["seed"] == "default"
    assert set(provenance) == {field.name for field in dataclasses.fields(EngineConfig)}


def test_a_user_who_asks_for_the_default_value_decided_it() -> None:
    resolved = resolve({"max_requests": 256}, {"max_requests": 8})
    assert resolved.config.max_requests == 256
    assert resolved.provenance["max_requests"] == "user"


@pytest.mark.parametrize(
    ("user", "platform", "source"), [({"blok": 1}, {}, "user"), ({}, {"blok": 1}, "platform")]
)
def test_an_unknown_setting_is_refused_naming_who_set_it_and_what_exists(
    user: dict[str, Any], platform: dict[str, Any], source: str
) -> None:
    with pytest.raises(ConfigError, match=rf"unknown {source} settings \['blok'\].*'block_size'"):
        resolve(user, platform)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_batch_tokens", 0),
        ("max_requests", -1),
        ("block_size", 0),
        ("max_model_len", 0),
        ("num_blocks", 0),
        ("memory_fraction", 0.0),
        ("memory_fraction", 1.1),
        ("memory_fraction", float("nan")),
        ("dtype", "float8"),
        ("quantization", "int2"),
        ("tensor_parallel", 0),
        ("step_target_s", -1.0),
        ("step_timeout_s", -1.0),
        ("step_timeout_s", float("nan")),
    ],
)
def test_a_value_out_of_range_is_refused_naming_the_setting(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        EngineConfig(**{name: value})


def test_a_config_is_frozen() -> None:
    config = EngineConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("auto", DeviceChoice("auto")),
        ("npu", DeviceChoice("npu")),
        ("npu:0", DeviceChoice("npu", (0,))),
        ("npu:3,1", DeviceChoice("npu", (3, 1))),
        ("npu:small,0,fail@7", DeviceChoice("npu", (0,), ("small", "fail@7"))),
    ],
)
def test_a_device_is_a_name_indices_and_words(text: str, choice: DeviceChoice) -> None:
    assert DeviceChoice.parse(text) == choice


@pytest.mark.parametrize("text", ["", ":0", "npu:", "npu:@", "npu:0,", "npu:-1", "npu:0:1"])
def test_a_device_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="NAME:INDEX"):
        DeviceChoice.parse(text)
