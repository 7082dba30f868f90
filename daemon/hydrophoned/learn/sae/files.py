"""A dictionary on disk: a folder that is written whole or not at all, and checked before anything is allocated.

    DIR/dictionary.safetensors   the state's tensors by name; ``generator``, the state of the random generator; and
                                 what lies beside the dictionary (a normaliser, say) as ``beside/NAME``
    DIR/config.json              format, settings, dtype, counters, size and digest of the tensors file, whether it has
                                 the optimiser's ``moments``, and ``about``: a JSON object that is the writer's own

Nothing in either can run code. A file that lies (a shape against its settings, a size against its shape, a value that
is not finite) raises :class:`CheckpointError`, which says which file, which value and what to do.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from safetensors.torch import save_file
from torch import Tensor

from hydrophoned.learn.errors import CheckpointError, InvalidConfig
from hydrophoned.learn.sae.autoencoder import SparseAutoencoder
from hydrophoned.learn.sae.config import DictionaryConfig

CONFIG: Final = "config.json"
TENSORS: Final = "dictionary.safetensors"
KIND: Final = "hydrophone dictionary"
FORMAT: Final = 1
MOST_JSON_BYTES: Final = 4 << 20
"""Largest JSON document that is read, in bytes."""
_BESIDE: Final = "beside/"
_GENERATOR: Final = "generator"
_MOMENTS: Final = ("m_dec", "v_dec", "m_enc", "v_enc")
_KEYS: Final = {"kind", "format", "config", "dtype", "numbers", "moments", "tensors_bytes", "tensors_sha256", "about"}
_DTYPES: Final = {"float32": torch.float32, "float64": torch.float64}
_SAFETENSORS_DTYPES: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
_REMEDY: Final = "Save the dictionary again, or take another copy"
Shape = tuple[int, ...]


class Saved(NamedTuple):
    """What a folder held: the dictionary, the writer's own JSON object, and tensors that lay beside."""

    dictionary: SparseAutoencoder
    about: dict[str, Any]
    beside: dict[str, Tensor]


class Packed(NamedTuple):
    """The two files of a saved dictionary: bytes of the tensors, and what the JSON holds."""

    tensors: bytes
    document: dict[str, Any]


def save(
    dictionary: SparseAutoencoder,
    directory: Path,
    *,
    about: Mapping[str, Any] | None = None,
    beside: Mapping[str, Tensor] | None = None,
) -> None:
    """Write ``dictionary`` to the folder ``directory``, in place of a dictionary that is already there.

    ``about`` is kept as it is; ``beside`` are further tensors, whose floats are finite and integers at least 0. Raises
    :class:`CheckpointError` where ``directory`` holds something else, and OSError when the disk does not take it; what
    was there is then intact.
    """
    tensors, document = _content(dictionary, about, beside)
    directory = Path(os.path.abspath(directory))  # noqa: PTH100  resolve() would follow a link that is to be replaced
    if directory.exists() and not is_saved(directory) and (not directory.is_dir() or any(directory.iterdir())):
        raise CheckpointError(f"{directory} exists and is no saved dictionary. Choose another folder.")
    directory.parent.mkdir(parents=True, exist_ok=True)
    draft = directory.with_name(f".{directory.name}.draft-{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        save_file(_in_main_memory(tensors), draft / TENSORS)
        document |= {"tensors_bytes": (draft / TENSORS).stat().st_size, "tensors_sha256": _synced(draft / TENSORS)}
        (draft / CONFIG).write_text(config_text(document), encoding="utf-8")
        _synced(draft / CONFIG)
        _put_in_place(draft, directory)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def pack(
    dictionary: SparseAutoencoder,
    *,
    about: Mapping[str, Any] | None = None,
    beside: Mapping[str, Tensor] | None = None,
) -> Packed:
    """What :func:`save` would write of ``dictionary``, without the optimiser's moments: a third of it.

    One that is read from it gives the same codes and reconstructions, and learns on with moments that begin anew.
    """
    tensors, document = _content(dictionary, about, beside)
    kept = {name: value for name, value in tensors.items() if name not in _MOMENTS}
    content = to_bytes(_in_main_memory(kept))
    digest = hashlib.sha256(content).hexdigest()
    return Packed(content, document | {"moments": False, "tensors_bytes": len(content), "tensors_sha256": digest})


def config_text(document: Mapping[str, Any]) -> str:
    """The text of the JSON file. Raises :class:`CheckpointError` where it would be too long to be read again."""
    text = json.dumps(document, indent=1)
    if len(text.encode()) > MOST_JSON_BYTES:
        raise CheckpointError(f"{CONFIG} would have {len(text):,} bytes, more than is read again. Shorten its notes.")
    return text


def is_saved(directory: Path) -> bool:
    """Whether ``directory`` looks like one that :func:`save` has written."""
    return (directory / CONFIG).is_file() and (directory / TENSORS).is_file()


def load(directory: Path, device: torch.device | None = None) -> SparseAutoencoder:
    """The dictionary in ``directory``, which goes on exactly where the saved one stood. Raises CheckpointError."""
    return read(directory, device=device).dictionary


def read(directory: Path, *, device: torch.device | None = None) -> Saved:
    """The dictionary in ``directory`` with what lies beside it. Raises CheckpointError."""
    path, tensors_path = Path(directory) / CONFIG, Path(directory) / TENSORS
    document = read_json(path)
    if document.get("kind") != KIND:
        raise CheckpointError(f"{path}: kind is {document.get('kind')!r}, not {KIND!r}. It is another tool's folder.")
    if document.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format is {document.get('format')!r}; this version reads {FORMAT}. Update.")
    document = {"moments": True} | document
    _names(path, "document", document, _KEYS)
    moments = document["moments"]
    if type(moments) is not bool:
        raise CheckpointError(f"{path}: moments is {moments!r}, not true or false. {_REMEDY}.")
    config = _config(path, document["config"])
    dtype = _DTYPES.get(document["dtype"]) if isinstance(document["dtype"], str) else None
    if dtype is None:
        raise CheckpointError(f"{path}: dtype is {document['dtype']!r}, not {' or '.join(_DTYPES)}. {_REMEDY}.")
    _check_file(path, document, tensors_path)
    found = read_tensors(tensors_path, _matrices(config, moments=moments))
    beside = {name.removeprefix(_BESIDE): found.pop(name) for name in list(found) if name.startswith(_BESIDE)}
    if _GENERATOR not in found:
        raise CheckpointError(f"{tensors_path} lacks the tensor {_GENERATOR!r}. {_REMEDY}.")
    generator_state = found.pop(_GENERATOR)
    dictionary = SparseAutoencoder(config, generator=torch.Generator(), device=device, dtype=dtype)
    own = dictionary.state_dict()
    if not moments:
        found |= {name: torch.zeros_like(found["W_dec"]) for name in _MOMENTS}
    _names(tensors_path, "file", found, {name for name, value in own.items() if isinstance(value, Tensor)})
    numbers = _numbers(
        path, document["numbers"], {name for name, value in own.items() if not isinstance(value, Tensor)}
    )
    try:
        dictionary.load_state({**found, **numbers})
        dictionary.generator.set_state(generator_state)
        if not moments:
            dictionary.latents.forget(torch.arange(config.features))
    except (CheckpointError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{tensors_path}: {error}. {_REMEDY}.") from error
    about = document["about"]
    if not isinstance(about, dict):
        raise CheckpointError(f"{path}: about is a {type(about).__name__}, not an object. {_REMEDY}.")
    return Saved(dictionary, about, beside)


# -- parts that the other formats need too ----------------------------------------------------------------------------


def read_json(path: Path, *, most_bytes: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in ``path``, of at most ``most_bytes``. Raises CheckpointError."""
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise CheckpointError(f"{path} has {size:,} bytes; at most {most_bytes:,} are read. {_REMEDY}.")
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"there is no {path}. Name the folder that holds it.") from None
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read: {error}. {_REMEDY}.") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} holds a {type(document).__name__}, not an object. {_REMEDY}.")
    return document


def read_tensors(path: Path, shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """All tensors of a safetensors file, in main memory; those named in ``shapes`` must be there, in that shape.

    The file's header is checked first: nothing is allocated for a file that is cut short or of another shape. Raises
    :class:`CheckpointError` then, and for a value that is not finite or an integer below 0.
    """
    try:
        with safe_open(path, framework="pt") as file:
            # the reader itself refuses a header whose extents are not those of the file
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  it is no dict
            found = {name: tuple(one.get_shape()) for name, one in slices.items()}
            dtypes = {name: str(one.get_dtype()) for name, one in slices.items()}
            check_shapes(path, found, shapes)
            for name, dtype in dtypes.items():
                if dtype not in _SAFETENSORS_DTYPES:
                    raise CheckpointError(
                        f"{path}: {name} is of dtype {dtype}, not one of {', '.join(_SAFETENSORS_DTYPES)}. {_REMEDY}."
                    )
            tensors = {name: file.get_tensor(name) for name in found}
    except (OSError, SafetensorError) as error:
        if not Path(path).exists():
            raise CheckpointError(f"there is no {path}. Name the folder that holds it.") from None
        raise CheckpointError(f"{path} is damaged or cut short: {error}. {_REMEDY}.") from error
    check_values(path, tensors)
    return tensors


def check_shapes(path: Path, found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> None:
    """Raise CheckpointError unless ``found`` has every tensor of ``wanted`` in its shape."""
    for name, shape in wanted.items():
        if name not in found:
            raise CheckpointError(f"{path} lacks the tensor {name!r}; it has {', '.join(sorted(found))}. {_REMEDY}.")
        if found[name] != shape:
            raise CheckpointError(
                f"{path}: {name} is {list(found[name])}, but {list(shape)} by the settings beside it. {_REMEDY}."
            )


def check_values(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError for a float that is not finite, or an integer below 0."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            bad = int(tensor.numel() - tensor.isfinite().sum())
            what = "not finite"
        elif tensor.dtype in (torch.int64, torch.int32):
            bad = int((tensor < 0).sum())
            what = "negative"
        else:
            continue
        if bad:
            raise CheckpointError(f"{path}: {bad:,} of {tensor.numel():,} values of {name} are {what}. {_REMEDY}.")


# -- inside -----------------------------------------------------------------------------------------------------------


def _content(
    dictionary: SparseAutoencoder, about: Mapping[str, Any] | None, beside: Mapping[str, Tensor] | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors, and the document but for what it says of their file."""
    state = dictionary.state_dict()
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    tensors[_GENERATOR] = dictionary.generator.get_state()
    tensors |= {_BESIDE + name: value for name, value in (beside or {}).items()}
    return tensors, {
        "kind": KIND,
        "format": FORMAT,
        "config": asdict(dictionary.config),
        "dtype": str(dictionary.W_enc.dtype).removeprefix("torch."),
        "numbers": {name: value for name, value in state.items() if not isinstance(value, Tensor)},
        "moments": True,
        "about": dict(about or {}),
    }


def _in_main_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy each: safetensors refuses tensors that share memory, and a view would bring all of its memory along."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}


def _matrices(config: DictionaryConfig, *, moments: bool) -> dict[str, Shape]:
    """Shapes that bound everything else: once these are in the file, what is allocated is of the file's own size.

    Without moments a dictionary takes three times as much.
    """
    both, one = (config.features, config.width), (config.features,)
    further = dict.fromkeys(_MOMENTS if moments else (), both)
    return {"W_dec": both, "W_enc": both, **further, "b_enc": one, "b_dec": (config.width,)}


def _check_file(path: Path, document: dict[str, Any], tensors: Path) -> None:
    if not tensors.is_file():
        raise CheckpointError(f"there is no {tensors}, to which {path} belongs. {_REMEDY}.")
    size = tensors.stat().st_size
    if size != document["tensors_bytes"]:
        raise CheckpointError(
            f"{tensors} is cut short or of another save: {size:,} bytes, not {document['tensors_bytes']}. {_REMEDY}."
        )
    digest = _digest(tensors)
    if digest != document["tensors_sha256"]:
        raise CheckpointError(f"{tensors} is damaged: its digest is {digest[:12]}..., not that in {path}. {_REMEDY}.")


def _config(path: Path, given: Any) -> DictionaryConfig:
    if not isinstance(given, dict):
        raise CheckpointError(f"{path}: config is a {type(given).__name__}, not an object. {_REMEDY}.")
    hints = get_type_hints(DictionaryConfig)
    _names(path, "config", given, {field.name for field in fields(DictionaryConfig)})
    values = {name: _setting(path, name, value, hints[name]) for name, value in given.items()}
    try:
        return DictionaryConfig(**values)
    except InvalidConfig as error:
        raise CheckpointError(f"{path}: {error}. {_REMEDY}.") from error


def _setting(path: Path, name: str, value: Any, hint: Any) -> Any:
    """``value`` as the field's type wants it; JSON knows no tuples, and writes 1.0 where 1 may be read."""
    if get_origin(hint) is tuple and isinstance(value, list) and all(type(one) is int for one in value):
        return tuple(value)
    if hint is float and type(value) in (int, float) and abs(value) < math.inf:
        return float(min(value, 1 << 1000))  # an integer of JSON may be too large for a float
    if (hint in (int, bool) and type(value) is hint) or value in get_args(hint):
        return value
    raise CheckpointError(f"{path}: {name} = {value!r} is no value for it. {_REMEDY}.")


def _numbers(path: Path, given: Any, wanted: set[str]) -> dict[str, int]:
    if not isinstance(given, dict):
        raise CheckpointError(f"{path}: numbers is a {type(given).__name__}, not an object. {_REMEDY}.")
    _names(path, "numbers", given, wanted)
    for name, value in given.items():
        if type(value) is not int or not 0 <= value < 1 << 63:
            raise CheckpointError(f"{path}: {name} = {value!r} is no count. {_REMEDY}.")
    return given


def _names(path: Path, where: str, given: Iterable[str], wanted: set[str]) -> None:
    missing, unknown = sorted(wanted - set(given)), sorted(set(given) - wanted)
    if missing:
        raise CheckpointError(f"{path}: the {where} lacks {', '.join(missing)}. {_REMEDY}.")
    if unknown:
        raise CheckpointError(
            f"{path}: the {where} has {', '.join(unknown)}, which this version does not know. Update, or remove it."
        )


def _put_in_place(draft: Path, directory: Path) -> None:
    """Rename ``draft`` to ``directory``; a folder cannot be renamed over one with files, so that one steps aside."""
    old = directory.with_name(f".{directory.name}.old-{os.getpid()}")
    if directory.exists():
        directory.rename(old)
    try:
        draft.rename(directory)
    except OSError:
        if old.exists():
            old.rename(directory)
        raise
    if old.exists():
        shutil.rmtree(old)
    descriptor = os.open(directory.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _synced(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return _digest(path)
