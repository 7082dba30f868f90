"""What all formats share: a folder with a JSON config beside its tensors, read with suspicion and written whole."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from hydrophoned.formats.errors import FormatError
from hydrophoned.learn.errors import CheckpointError
from hydrophoned.learn.sae.files import read_json

OURS: Final = "hydrophone"
"""Key, in another format's config, of what that format has no place for."""
_MOST_CONFIG_BYTES: Final = 1 << 20


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object of another format. Raises CheckpointError."""
    return read_json(path, most_bytes=_MOST_CONFIG_BYTES)


def count(path: Path, config: Mapping[str, Any], name: str, *, default: int | None = None) -> int:
    """A number of at least 1 in a config. Raises CheckpointError that names file, key and value."""
    value = config.get(name, default)
    if type(value) is not int or value < 1:
        raise CheckpointError(f"{path}: {name} = {value!r} is no number above 0. Take the file as its tool wrote it.")
    return value


def section(path: Path, config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object inside a config; empty where there is none."""
    value = config.get(name) or {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: {name} is a {type(value).__name__}, not an object.")
    return value


def own_prefixes(path: Path, ours: Mapping[str, Any], features: int) -> tuple[int, ...]:
    """Prefixes that we wrote into another format's config."""
    ends = ours.get("prefixes") or []
    if not isinstance(ends, list) or any(type(one) is not int for one in ends):
        raise CheckpointError(f"{path}: prefixes = {ends!r} is no list of numbers.")
    if ends and (ends != sorted(set(ends)) or ends[0] < 1 or ends[-1] != features):
        raise CheckpointError(f"{path}: prefixes {ends} do not rise to {features}, the number of latents.")
    return tuple(ends)


def working(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floats of fewer than 32 bits as float32, the others as they are."""
    short = (torch.float16, torch.bfloat16)
    return {name: tensor.float() if tensor.dtype in short else tensor for name, tensor in tensors.items()}


def dtypes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of the dtypes of a file's tensors, to be kept in the metadata."""
    return {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}


def as_recorded(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], form: str) -> dict[str, Tensor]:
    """``tensors`` in the dtypes of the file they were read from, if ``form`` is its format and nothing is lost."""
    known = metadata.get("dtypes") if metadata.get("format") == form else None
    if not isinstance(known, dict):
        known = {}
    cast = {name: tensor.to(getattr(torch, str(known.get(name)), tensor.dtype)) for name, tensor in tensors.items()}
    exact = all(torch.equal(cast[name].to(tensor.dtype), tensor) for name, tensor in tensors.items())
    return {name: one.contiguous() for name, one in (cast if exact else tensors).items()}


def write_folder(directory: Path, write: Callable[[Path], None], config_name: str, config: Mapping[str, Any]) -> None:
    """Make the folder ``directory`` whole or not at all: ``write`` puts the tensors into the folder it is given.

    Raises :class:`FormatError` where ``directory`` exists and is not empty: another tool's folder is not overwritten.
    """
    directory = Path(os.path.abspath(directory))  # noqa: PTH100  resolve() would follow a link
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FormatError(f"{directory} exists and is not empty. Choose another folder.")
    directory.parent.mkdir(parents=True, exist_ok=True)
    draft = directory.with_name(f".{directory.name}.draft-{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        write(draft)
        (draft / config_name).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        for path in draft.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        draft.rename(directory)  # an empty folder gives way
    finally:
        shutil.rmtree(draft, ignore_errors=True)
