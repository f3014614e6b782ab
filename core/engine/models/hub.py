"""Models by their name on a hub."""

import re
from pathlib import Path

from engine.config import EngineConfig
from engine.errors import ModelError

#: No pickles, and of the weights only those that transformers would read.
_WANTED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
_UNWANTED = ("original/*", "consolidated*", "*adapter_model*", "*/*.safetensors")
_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def fetch(config: EngineConfig) -> Path:
    """The local snapshot of a hub name; downloaded, or found in the hub's cache.

    Raises:
        ModelError: it is no hub name, the hub has no such model, or there is no network.
    """
    if not _NAME.fullmatch(config.model):
        raise ModelError(
            f"model folder {config.model!r} does not exist; give a folder that holds config.json "
            'and safetensors files, a hub name such as "owner/name", or "embedded"'
        )
    import huggingface_hub
    from huggingface_hub import errors

    code = ("*.py",) if config.trust_remote_code else ()
    try:
        folder = huggingface_hub.snapshot_download(
            config.model,
            revision=config.revision,
            allow_patterns=[*_WANTED, *code],
            ignore_patterns=list(_UNWANTED),
        )
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        revision = f" at revision {config.revision!r}" if config.revision else ""
        raise ModelError(
            f"there is neither a folder nor a hub model {config.model!r}{revision} that may be "
            f"read; check the name, or log in if the model is private ({_first_line(error)})"
        ) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"there is no folder {config.model!r}, and the hub could not be reached to fetch a "
            "model of this name; give a local folder, or try again with a network "
            f"({_first_line(error)})"
        ) from error
    return Path(folder)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
