"""Safetensors files, read tensor by tensor through a memory map."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import ModelError
from engine.models.dequantize import DTYPES, SUFFIXES, factors
from engine.models.json_file import read_json
from engine.models.scaling import Scaling

_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a stored vector or matrix, or of one matrix of a stored stack of them."""

    name: str
    shape: tuple[int, ...]  # that the stored tensor must have
    rows: range | None = None  # None: all
    columns: range | None = None  # a vector has none
    at: int | None = None  # which matrix of a stack

    def of(self, stored: Tensor) -> Tensor:
        """The part, as a view."""
        one = stored if self.at is None else stored[self.at]
        return (
            one[_slice(self.rows)]
            if one.ndim == 1
            else one[_slice(self.rows), _slice(self.columns)]
        )


def _is(tensor: Tensor, dtype: torch.dtype, device: str) -> bool:
    return tensor.dtype == dtype and tensor.device.type == torch.device(device).type


def _slice(part: range | None) -> slice:
    return slice(None) if part is None else slice(part.start, part.stop)


class Checkpoint:
    """The tensors of a folder, by name. Nothing is read before it is asked for.

    Args:
        scaling: how weights in fp8 are scaled, where there are any.

    Raises:
        ModelError: there is no safetensors file, one is missing or damaged, or a tensor is missing
            or has another shape than the architecture says.
    """

    def __init__(self, folder: Path, scaling: Scaling | None = None) -> None:
        self._folder = folder
        self._scaling = scaling
        self._files = {path.name: _open(path) for path in _find_files(folder)}
        self.num_bytes_read = 0  # in the dtype they were read into
        self._home = {name: file for file in self._files for name in self._files[file].keys()}  # type: ignore[no-untyped-call]  # noqa: SIM118

    def __contains__(self, name: str) -> bool:
        return name in self._home

    def read(self, pieces: Sequence[Piece], dtype: torch.dtype, device: str) -> Tensor:
        """The pieces one below the other. A single matrix that needs no change is a view of the
        memory map: its pages are read when they are used, and copied if they are written."""
        parts = [self._part(piece) for piece in pieces]
        if len(parts) == 1 and parts[0].ndim == 2 and _is(parts[0], dtype, device):
            self.num_bytes_read += parts[0].nbytes
            return parts[0]
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        target = torch.empty(shape, dtype=dtype, device=device)
        self._fill(target, parts)
        return target

    def read_into(self, target: Tensor, pieces: Sequence[Piece]) -> None:
        """Fill `target` with the pieces, one below the other."""
        self._fill(target, [self._part(piece) for piece in pieces])

    def _fill(self, target: Tensor, parts: Sequence[Tensor]) -> None:
        start = 0
        for part in parts:
            target[start : start + part.shape[0]].copy_(part)  # converts the dtype on the way
            start += part.shape[0]
        self.num_bytes_read += target.nbytes

    def _part(self, piece: Piece) -> Tensor:
        """A view of what is stored; of weights in fp8, what they stand for, in float32."""
        stored = self._stored(piece)
        part = piece.of(stored)
        return self._scaled(piece, part) if stored.dtype in DTYPES else part

    def _scaled(self, piece: Piece, part: Tensor) -> Tensor:
        stem = piece.name.removesuffix("weight")
        names = [stem + suffix for suffix in SUFFIXES if stem + suffix in self._home]
        if self._scaling is None or not names or len(piece.shape) != 2:
            raise ModelError(
                f"weight {piece.name!r} in {self._folder} is stored in fp8, and how it is scaled is"
                " not known: config.json needs a quantization_config, and the files"
                f" {' or '.join(stem + suffix for suffix in SUFFIXES)}; give the model as its"
                " authors published it, or in bfloat16"
            )
        height, width = piece.shape
        covered = (piece.rows or range(height), piece.columns or range(width))
        scales = self._files[self._home[names[0]]].get_tensor(names[0])  # type: ignore[no-untyped-call]
        try:
            return part.float() * factors(scales, self._scaling, piece.shape, covered)
        except ValueError as error:
            raise ModelError(
                f"{names[0]!r} in {self._folder} does not fit its weight: {error}; the files may be"
                " of another model than config.json"
            ) from error

    def _stored(self, piece: Piece) -> Tensor:
        """A view of the memory map: pages are read when they are copied."""
        if piece.name not in self._home:
            raise ModelError(
                f"{self._folder} has no weight {piece.name!r}, which its architecture needs; the "
                f"{len(self._home)} weights that are there begin with {_some(self._home)}; the "
                "files may be incomplete, or config.json may name another architecture"
            )
        file = self._home[piece.name]
        try:
            stored: Tensor = self._files[file].get_tensor(piece.name)  # type: ignore[no-untyped-call]
        except (SafetensorError, OSError) as error:
            raise _damaged(self._folder / file, error) from error
        if tuple(stored.shape) != piece.shape:
            raise ModelError(
                f"weight {piece.name!r} in {self._folder / file} has the shape "
                f"{tuple(stored.shape)}, but config.json asks for {piece.shape}; the two are not "
                "of the same model"
            )
        if not stored.is_floating_point():
            raise ModelError(
                f"weight {piece.name!r} in {self._folder / file} is stored as {stored.dtype}; "
                "quantized weights cannot be used, float32, bfloat16 and float16 can"
            )
        return stored


def _find_files(folder: Path) -> list[Path]:
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if (folder / _INDEX).is_file():
        return _indexed_files(folder)
    if found := sorted(folder.glob("*.safetensors")):
        return found
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    also = (
        f"; {', '.join(pickles[:3])} is there, but pickles can run code and are never loaded: "
        "convert the model with transformers, save_pretrained writes safetensors"
        if pickles
        else "; fetch the model again, weights included"
    )
    raise ModelError(f"{folder} holds no safetensors file{also}")


def _indexed_files(folder: Path) -> list[Path]:
    index = read_json(folder / _INDEX)
    files = index.get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise ModelError(f'{folder / _INDEX} has no "weight_map" of names to files; fetch it again')
    paths = [folder / name for name in sorted(set(files.values()))]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise ModelError(
            f"{folder} lacks {len(missing)} of the {len(paths)} files that {_INDEX} names "
            f"({', '.join(missing[:3])}); fetch the model again"
        )
    return paths


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ModelError:
    size = path.stat().st_size
    return ModelError(
        f"{path} ({size} bytes) is truncated or is no safetensors file ({error}); fetch it again"
    )


def _some(names: Sequence[str] | dict[str, str]) -> str:
    return ", ".join(sorted(names)[:3])
