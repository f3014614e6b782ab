"""A model's configuration, complete with its architecture's defaults."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from engine.errors import ModelError
from engine.models.declarations import DECLARATIONS
from engine.models.json_file import read_json
from engine.models.scaling import Scaling
from engine.models.stated import StatedConfiguration

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Configuration(Protocol):
    """What is read of a configuration: transformers' own, or one that states everything itself."""

    @property
    def rope_parameters(self) -> Mapping[str, Any]:
        """With "rope_type" and "rope_theta" at least."""

    def to_dict(self) -> dict[str, Any]: ...


def complete_configuration(
    folder: Path, architecture: str, *, trust_remote_code: bool
) -> Configuration:
    """The folder's config.json, with every default that it leaves out.

    Raises:
        ModelError: the architecture is unknown, or a value in config.json is impossible.
    """
    stated = StatedConfiguration.read(architecture, read_json(folder / "config.json"))
    return stated or transformers_configuration(
        folder, architecture, trust_remote_code=trust_remote_code
    )


def transformers_configuration(
    folder: Path, architecture: str, *, trust_remote_code: bool
) -> "PretrainedConfig":
    """The folder's config.json as transformers understands it. Imports torch; raises as above.

    transformers knows every spelling of older versions and every default, so that nothing past
    this point needs to.
    """
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    path = folder / "config.json"
    try:
        config: PretrainedConfig = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, ImportError),
        StrictDataclassError,
    ) as error:
        raise ModelError(
            f"{path} describes {architecture} in a way that transformers "
            f"{transformers.__version__} does not understand: {error}\n{_what_can_be()}"
        ) from error
    if architecture not in DECLARATIONS and not _is_causal(config, architecture, trust_remote_code):
        raise ModelError(
            f"{path} names {architecture}, which is no language model that generates text from "
            f"left to right. {_what_can_be()}"
        )
    if described := config.to_dict().get("quantization_config"):
        Scaling.of(described)
    return config


def _is_causal(config: "PretrainedConfig", architecture: str, trust_remote_code: bool) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    own_code = trust_remote_code and "AutoModelForCausalLM" in config.to_dict().get("auto_map", {})
    return own_code or architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def _what_can_be() -> str:
    return (
        f"There is a decoder for {', '.join(sorted(DECLARATIONS))}; every other causal language "
        "model of transformers runs through its own code"
    )
