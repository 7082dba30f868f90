"""Checkpoints on disk: a folder per version, written whole or not at all, verified when read.

    DIR/checkpoint-000012/state.safetensors   tensors, named part/name
    DIR/checkpoint-000012/state.json          numbers, format, digest of the tensors file, what it belongs to

Writing: a temporary folder, fsync of its files, rename, fsync of DIR. The previous checkpoint is kept until then.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hydrophoned.learn.errors import CheckpointError

FORMAT: Final = 1
State = dict[str, dict[str, Any]]


def save_checkpoint(directory: Path, state: State, about: dict[str, Any], *, keep: int = 2) -> Path:
    """Write ``state`` (tensors and numbers by part) as the next checkpoint in ``directory``; return its folder.

    ``state`` is not copied: it must not change meanwhile (:func:`copy_state`).
    ``about`` says what it belongs to (stream, width, fingerprint, config) and is stored as it is. At least one and at
    most ``keep`` checkpoints remain. Raises OSError when the disk does not take it; older checkpoints are then intact.
    """
    directory.mkdir(parents=True, exist_ok=True)
    numbers = [_number(path) for path in _checkpoints(directory)]
    target = directory / f"checkpoint-{max(numbers, default=0) + 1:06d}"
    draft = directory / f".draft-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    tensors, plain = _split(state)
    save_file(tensors, draft / "state.safetensors")
    digest = _sync(draft / "state.safetensors")
    document = {"format": FORMAT, "about": about, "numbers": plain, "tensors_sha256": digest}
    (draft / "state.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    _sync(draft / "state.json")
    draft.rename(target)
    _sync_folder(directory)
    for old in _checkpoints(directory)[: -max(keep, 1)]:
        shutil.rmtree(old)
    return target


def copy_state(state: State) -> State:
    """A copy of ``state`` in main memory that its owner no longer touches."""
    return {
        part: {
            name: value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value
            for name, value in values.items()
        }
        for part, values in state.items()
    }


def load_checkpoint(directory: Path) -> tuple[State, dict[str, Any]] | None:
    """The newest intact checkpoint in ``directory`` as (state, about); None if there is none at all.

    A damaged one is passed over for the one before it; when all are damaged, CheckpointError names the causes.
    """
    problems = []
    for path in reversed(_checkpoints(directory)):
        try:
            return _read(path)
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError(
            f"no checkpoint in {directory} can be read: {'; '.join(problems)}. Move the folder away to begin anew."
        )
    return None


def _read(path: Path) -> tuple[State, dict[str, Any]]:
    try:
        document = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {document['format']}; this version reads format {FORMAT}")
        digest = _digest(path / "state.safetensors")
        if digest != document["tensors_sha256"]:
            raise CheckpointError(f"{path / 'state.safetensors'} is damaged: its digest is {digest[:12]}...")
        tensors = load_file(path / "state.safetensors")
        state: State = {part: dict(numbers) for part, numbers in document["numbers"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read: {error!r}") from error
    for name, tensor in tensors.items():
        part, _, key = name.partition("/")
        state.setdefault(part, {})[key] = tensor
    return state, document["about"]


def _split(state: State) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, Any]]]:
    tensors = {
        f"{part}/{name}": value.contiguous().cpu()
        for part, values in state.items()
        for name, value in values.items()
        if isinstance(value, torch.Tensor)
    }
    plain = {
        part: {name: value for name, value in values.items() if not isinstance(value, torch.Tensor)}
        for part, values in state.items()
    }
    return tensors, plain


def _checkpoints(directory: Path) -> list[Path]:
    return sorted(directory.glob("checkpoint-*"), key=_number)


def _number(path: Path) -> int:
    digits = path.name.removeprefix("checkpoint-")
    return int(digits) if digits.isdigit() else 0


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return _digest(path)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json_atomically(path: Path, document: dict[str, Any]) -> None:
    """Write a small JSON document whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(document), encoding="utf-8")
    _sync(draft)
    draft.rename(path)
    _sync_folder(path.parent)


def load_json(path: Path) -> dict[str, Any] | None:
    """Read a document of :func:`write_json_atomically`; None if there is none. Raises CheckpointError if damaged."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Move it away to begin anew.") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} holds a {type(document).__name__}, not an object")
    return document
