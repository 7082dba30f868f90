"""Our own folder (:mod:`hydrophoned.learn.sae.files`) as one of the formats.

A dictionary that learned normalised rows is saved as it stands, with its normaliser beside it; reading it as an
:class:`Exchange` folds the normaliser in. One that came from another format keeps beside it what the folding into a
dictionary changed, so that going back gives the same bits, for as long as it has not learned on.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from hydrophoned.formats.exchange import TENSORS, Exchange, from_dictionary, to_dictionary
from hydrophoned.learn.errors import CheckpointError
from hydrophoned.learn.sae import SparseAutoencoder, files

NAME: Final = "hydrophone"
_MEAN, _SCALE, _MATRIX, _ORIGIN = "normaliser.mean", "normaliser.scale", "normaliser.matrix", "origin."


def load(directory: Path) -> Exchange:
    """The dictionary in ``directory`` as one of raw rows. Raises CheckpointError."""
    saved = files.read(directory)
    about, metadata = saved.about.get("exchange"), saved.about.get("metadata") or {}
    if not isinstance(metadata, dict) or not isinstance(about or {}, dict):
        raise CheckpointError(f"{directory / files.CONFIG}: about is not as this tool writes it. Save it again.")
    if _MEAN in saved.beside and _SCALE in saved.beside:
        mean, scale, matrix = saved.beside[_MEAN], float(saved.beside[_SCALE]), saved.beside.get(_MATRIX)
        return from_dictionary(saved.dictionary, mean=mean, scale=scale, whitening=matrix, metadata=metadata)
    plain = from_dictionary(saved.dictionary, metadata=metadata)
    if not about:
        return plain
    changes: dict[str, Any] = {name: about[name] for name in ("centred", "rescaled") if type(about.get(name)) is bool}
    if "k" in about and about["k"] is None:
        changes["k"] = None
    changes |= {name: saved.beside[_ORIGIN + name] for name in TENSORS if _ORIGIN + name in saved.beside}
    candidate = replace(plain, **changes)
    return candidate if _same(from_dictionary(to_dictionary(candidate)), plain) else plain


def save(exchange: Exchange, directory: Path) -> None:
    """Write ``exchange`` to the folder ``directory`` as a dictionary that can learn on."""
    dictionary = to_dictionary(exchange)
    back = from_dictionary(dictionary).tensors()
    own = exchange.tensors()
    changed = {name: tensor for name, tensor in own.items() if not _equal(tensor, back[name])}
    about = {"centred": exchange.centred, "rescaled": exchange.rescaled, "k": exchange.k}
    files.save(
        dictionary,
        directory,
        about={"metadata": exchange.metadata, "exchange": about},
        beside={_ORIGIN + name: tensor for name, tensor in changed.items()},
    )


def save_normalised(
    dictionary: SparseAutoencoder,
    directory: Path,
    *,
    mean: Tensor,
    scale: float,
    matrix: Tensor | None = None,
    metadata: Mapping[str, Any],
) -> None:
    """Write ``dictionary``, which knows rows (x - ``mean``) * ``scale``, with what it needs to go on exactly.

    Where there is a ``matrix`` [d, d], it knows rows ``matrix`` (x - ``mean``) instead.
    """
    beside = {_MEAN: mean.cpu(), _SCALE: torch.tensor(scale, dtype=torch.float64)}
    if matrix is not None:
        beside[_MATRIX] = matrix.cpu()
    files.save(dictionary, directory, about={"metadata": dict(metadata)}, beside=beside)


def _same(one: Exchange, other: Exchange) -> bool:
    return all(_equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)
