"""dictionary_learning: ``config.json`` and ``ae.pt``, a state dict in torch's own archive.

The class named in the config says what the tensors mean; most keep the decoder as [d, F]. The archive holds pickled
structure, so it is read with ``weights_only``, which builds tensors and nothing else, and only if its entries are
stored uncompressed: no small file can then become a large one in memory.
"""

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from hydrophoned.formats.errors import NotCarried
from hydrophoned.formats.exchange import Exchange, centred, uncentred, unit
from hydrophoned.formats.folders import (
    OURS,
    as_recorded,
    count,
    dtypes,
    own_prefixes,
    read_config,
    section,
    working,
    write_folder,
)
from hydrophoned.learn.config import Variant
from hydrophoned.learn.errors import CheckpointError
from hydrophoned.learn.sae.files import Shape, check_shapes, check_values

NAME: Final = "dictionary_learning"
CONFIG: Final = "config.json"
WEIGHTS: Final = "ae.pt"


class _Class(NamedTuple):
    """One of the library's classes: its trainer, the field of each tensor, and which tensors are transposed."""

    trainer: str
    variant: Variant
    fields: dict[str, str]
    transposed: tuple[str, ...] = ("decoder.weight",)
    numbers: tuple[str, ...] = ()


_LINEAR: Final = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}
_GATED: Final = {
    "decoder_bias": "b_dec",
    "r_mag": "r_mag",
    "gate_bias": "b_enc",
    "mag_bias": "b_mag",
    "encoder.weight": "W_enc",
    "decoder.weight": "W_dec",
}
_OWN_NAMES: Final = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
_K: Final = ("k", "threshold")
_CLASSES: Final = {
    "AutoEncoderTopK": _Class("TopKTrainer", "topk", _LINEAR | {"b_dec": "b_dec"}, numbers=_K),
    "BatchTopKSAE": _Class("BatchTopKTrainer", "batchtopk", _LINEAR | {"b_dec": "b_dec"}, numbers=_K),
    "MatryoshkaBatchTopKSAE": _Class(
        "MatryoshkaBatchTopKTrainer", "batchtopk", _OWN_NAMES, ("W_enc",), (*_K, "group_sizes")
    ),
    "JumpReluAutoEncoder": _Class("JumpReluTrainer", "jumprelu", _OWN_NAMES | {"threshold": "threshold"}, ("W_enc",)),
    "GatedAutoEncoder": _Class("GatedSAETrainer", "gated", _GATED),
    "AutoEncoder": _Class("StandardTrainer", "l1", _LINEAR | {"bias": "b_dec"}),
}


def load(directory: Path) -> Exchange:
    """The dictionary in ``directory``. Raises CheckpointError if damaged, NotCarried for what we have no place for."""
    path, weights = directory / CONFIG, directory / WEIGHTS
    config = read_config(path)
    trainer = section(path, config, "trainer")
    name = trainer.get("dict_class")
    kind = _CLASSES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise NotCarried(f"{path}: dict_class {name!r} is not one of {', '.join(_CLASSES)}")
    d, F = count(path, trainer, "activation_dim"), count(path, trainer, "dict_size")
    found = _read(weights, _shapes(kind, F, d))
    optional = {"threshold"} if kind.variant == "topk" else set()  # its first versions had none
    needed = set(kind.fields) | set(kind.numbers)
    if missing := sorted(needed - optional - set(found)):
        raise CheckpointError(f"{weights} lacks {', '.join(missing)}, which {name} has. Take another copy.")
    if unknown := sorted(set(found) - needed):
        raise NotCarried(f"{weights} has {', '.join(unknown)}, which {name} has not")
    tensors = working(found)
    ours = section(path, config, OURS)
    fields = {
        field: tensors[key].T.contiguous() if key in kind.transposed else tensors[key]
        for key, field in kind.fields.items()
    }
    if kind.variant == "batchtopk":
        fields["threshold"] = tensors["threshold"]
    return Exchange(
        variant="matryoshka" if kind.variant == "topk" and ours.get("variant") == "matryoshka" else kind.variant,
        **fields,
        k=_k(path, weights, trainer, found),
        prefixes=_prefixes(weights, found, F) or own_prefixes(path, ours, F),
        centred=kind.variant != "jumprelu",
        rescaled=name == "AutoEncoder",  # its loader divides decoder rows by their norm, and multiplies the codes
        metadata={
            "model": trainer.get("lm_name"),
            "site": trainer.get("submodule_name"),
            "layer": trainer.get("layer"),
            "notes": ours.get("notes"),
            "format": NAME,
            "config": config,
            "dtypes": dtypes(found),
            # not used for codes, but the file has it
            "threshold": float(found["threshold"]) if kind.variant == "topk" and "threshold" in found else None,
        },
    )


def save(exchange: Exchange, directory: Path) -> None:
    """Write ``exchange`` to the new folder ``directory``.

    Raises NotCarried for a topk or batchtopk dictionary that selects by the decoder's norm and cannot be folded.
    """
    name = _class_for(exchange)
    kind = _CLASSES[name]
    x = uncentred(exchange) if kind.variant == "jumprelu" else centred(exchange)
    x = x if x.rescaled == (name == "AutoEncoder") else unit(x)  # of unit rows both readings are the same
    tensors = {
        key: getattr(x, field).T if key in kind.transposed else getattr(x, field) for key, field in kind.fields.items()
    }
    before = x.metadata if x.metadata.get("format") == NAME else {}
    if kind.numbers:
        threshold = x.threshold if x.threshold is not None else _unused_threshold(before)
        tensors |= {"k": torch.tensor(x.k, dtype=torch.int32), "threshold": threshold}
    if "group_sizes" in kind.numbers:
        ends = torch.tensor((0, *x.prefixes))
        tensors["group_sizes"] = ends.diff()
    tensors = as_recorded(tensors, x.metadata, NAME)
    own = {"trainer_class": kind.trainer, "dict_class": name, "activation_dim": x.width, "dict_size": x.features}
    if kind.numbers:
        own["k"] = x.k
    elif x.k is not None:
        own["target_l0"] = x.k
    known = {"layer": "layer", "lm_name": "model", "submodule_name": "site"}
    about = {key: x.metadata.get(field) for key, field in known.items()}
    config: dict[str, Any] = dict(before.get("config") or {})
    config["trainer"] = about | (config.get("trainer") or {}) | own
    ours = {"variant": x.variant, "prefixes": list(x.prefixes), "notes": x.metadata.get("notes")}
    config[OURS] = {key: value for key, value in ours.items() if value}
    # the library reads nothing but torch's archive: of a dict of tensors, which holds no code
    write_folder(directory, lambda draft: torch.save(tensors, draft / WEIGHTS), CONFIG, config)


def _unused_threshold(metadata: Mapping[str, Any]) -> Tensor:
    """The threshold that a topk file has and does not use; -1 says that there is none."""
    known = metadata.get("threshold")
    return torch.tensor(-1.0 if known is None else known, dtype=torch.float32)


def _class_for(x: Exchange) -> str:
    if x.variant == "batchtopk":
        return "MatryoshkaBatchTopKSAE" if x.prefixes else "BatchTopKSAE"
    return {"jumprelu": "JumpReluAutoEncoder", "gated": "GatedAutoEncoder", "l1": "AutoEncoder"}.get(
        x.variant, "AutoEncoderTopK"
    )


def _shapes(kind: _Class, F: int, d: int) -> dict[str, Shape]:
    sizes: dict[str, Shape] = {"W_enc": (F, d), "W_dec": (F, d), "b_dec": (d,)}
    shapes = {key: sizes.get(field, (F,)) for key, field in kind.fields.items()}
    for key in kind.transposed:
        shapes[key] = shapes[key][::-1]
    return shapes


def _k(path: Path, weights: Path, trainer: dict[str, Any], found: dict[str, Tensor]) -> int | None:
    if "k" not in found:
        return count(path, trainer, "target_l0") if isinstance(trainer.get("target_l0"), int) else None
    k = count(path, trainer, "k")
    if found["k"].numel() != 1 or int(found["k"]) != k:
        raise CheckpointError(f"{weights}: k is {found['k'].tolist()}, but {k} in {path}. Take another copy.")
    return k


def _prefixes(weights: Path, found: dict[str, Tensor], F: int) -> tuple[int, ...]:
    sizes = found.get("group_sizes")
    if sizes is None:
        return ()
    if sizes.ndim != 1 or sizes.is_floating_point() or not bool((sizes > 0).all()) or int(sizes.sum()) != F:
        raise CheckpointError(f"{weights}: group_sizes {sizes.tolist()[:8]} do not add up to {F}. Take another copy.")
    return tuple(sizes.cumsum(0).tolist())


def _read(path: Path, shapes: dict[str, Shape]) -> dict[str, Tensor]:
    """The tensors of a torch archive, checked. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"there is no {path}. Name the folder that holds it.")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is no torch archive, or cut short: {error}. Take another copy.") from error
    size = path.stat().st_size
    if (
        any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        or sum(one.file_size for one in entries) > size
    ):
        raise CheckpointError(f"{path} has compressed entries, which torch does not write. Do not trust it.")
    largest = max((math.prod(shape) for shape in shapes.values()), default=0)
    if largest > size:  # two matrices of at least two bytes an element
        raise CheckpointError(f"{path} has {size:,} bytes, too few for {largest:,} elements. Take another copy.")
    try:  # a damaged archive may raise nearly anything
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise CheckpointError(f"{path} cannot be read as plain tensors: {reason}. Take another copy.") from error
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not tensors by name. Take another copy.")
    for key, one in state.items():
        whole = isinstance(one, Tensor) and one.layout is torch.strided and not one.is_quantized
        # a tensor may repeat a small storage with strides of 0: it would grow when it is copied
        if not whole or one.untyped_storage().nbytes() < one.numel() * one.element_size():
            raise CheckpointError(f"{path}: {key} is no plain tensor. Do not trust it.")
    tensors = {key: one.detach() for key, one in state.items()}
    check_shapes(path, {key: tuple(one.shape) for key, one in tensors.items()}, shapes)
    # a threshold of -1 says that there is none yet: numbers other than the weights may be negative
    check_values(path, {key: one for key, one in tensors.items() if one.is_floating_point()})
    return tensors
