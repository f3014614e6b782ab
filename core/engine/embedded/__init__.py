"""The embedded model: a small instruct model that ships inside the package.

Its weights and tokenizer lie in the folder that `path()` names, in the layout of a Hugging Face
checkpoint. What it can answer, and how an answer is checked, is written in `world.py`.
"""

from pathlib import Path

__all__ = ["path"]


def path() -> Path:
    """The folder with config.json, model.safetensors, the tokenizer and the model card."""
    return Path(__file__).parent / "model"
