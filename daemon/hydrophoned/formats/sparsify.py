"""sparsify (eai-sparsify): ``cfg.json`` and ``sae.safetensors`` of one hookpoint.

It has one kind of dictionary that we can hold: topk, of rows less b_dec. W_dec is [F, d] like W_enc. Its groupmax, skip
connections, transcoders and signed codes are refused.
"""

from pathlib import Path
from typing import Any, Final

from safetensors.torch import save_file

from hydrophoned.formats.errors import NotCarried
from hydrophoned.formats.exchange import Exchange, centred, unit
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
from hydrophoned.learn.sae.files import read_tensors

NAME: Final = "sparsify"
CONFIG: Final = "cfg.json"
WEIGHTS: Final = "sae.safetensors"
_FIELDS: Final = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
_REFUSED: Final = {
    "skip_connection": "a linear path beside the dictionary",
    "transcode": "a dictionary that predicts another site",
    "signed": "codes below 0",
}


def load(directory: Path) -> Exchange:
    """The dictionary in ``directory``. Raises CheckpointError if damaged, NotCarried for what we have no place for."""
    path = directory / CONFIG
    config = read_config(path)
    activation = config.get("activation", "topk")  # its first versions had no other, and no key
    if activation != "topk":
        raise NotCarried(f"{path}: activation {activation!r} is not known: it is not read as topk")
    for name, meaning in _REFUSED.items():
        if config.get(name):
            raise NotCarried(f"{path}: {name} = {config[name]!r}, {meaning}, has no place in a dictionary here")
    d = count(path, config, "d_in")
    F = config.get("num_latents") or d * count(path, config, "expansion_factor", default=32)
    F = count(path, {"num_latents": F}, "num_latents")
    shapes = {"encoder.weight": (F, d), "encoder.bias": (F,), "W_dec": (F, d), "b_dec": (d,)}
    found = read_tensors(directory / WEIGHTS, shapes)
    if unknown := sorted(set(found) - set(shapes)):
        raise NotCarried(f"{directory / WEIGHTS} has {', '.join(unknown)}, which a topk dictionary has not")
    ours = section(path, config, OURS)
    tensors = {_FIELDS[name]: tensor for name, tensor in working(found).items()}
    return Exchange(
        variant="matryoshka" if ours.get("variant") == "matryoshka" else "topk",
        W_enc=tensors["W_enc"],
        W_dec=tensors["W_dec"],
        b_enc=tensors["b_enc"],
        b_dec=tensors["b_dec"],
        k=count(path, config, "k"),
        prefixes=own_prefixes(path, ours, F),
        metadata={
            "model": ours.get("model"),
            "site": ours.get("site", directory.name),
            "layer": ours.get("layer"),
            "notes": ours.get("notes"),
            "format": NAME,
            "config": config,
            "dtypes": dtypes(found),
        },
    )


def save(exchange: Exchange, directory: Path) -> None:
    """Write ``exchange`` to the new folder ``directory``. Raises NotCarried for any variant but topk and matryoshka."""
    if exchange.variant not in ("topk", "matryoshka"):
        raise NotCarried(
            f"sparsify carries topk dictionaries, not {exchange.variant}; saelens and dictionary_learning do"
        )
    x = centred(unit(exchange) if exchange.rescaled else exchange)
    tensors = {name: getattr(x, field) for name, field in _FIELDS.items()}
    before = x.metadata.get("config") if x.metadata.get("format") == NAME else None
    config: dict[str, Any] = {
        "activation": "topk",
        "expansion_factor": max(1, x.features // x.width),
        "normalize_decoder": True,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
    } | (before or {})
    ours: dict[str, Any] = {"variant": x.variant, "prefixes": list(x.prefixes)}
    ours |= {name: x.metadata.get(name) for name in ("model", "site", "layer", "notes")}
    config |= {"num_latents": x.features, "k": x.k, "d_in": x.width}
    config |= {OURS: {name: value for name, value in ours.items() if value not in (None, [])}}
    tensors = as_recorded(tensors, x.metadata, NAME)
    write_folder(directory, lambda draft: save_file(tensors, draft / WEIGHTS), CONFIG, config)
