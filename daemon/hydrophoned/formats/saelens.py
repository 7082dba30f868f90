"""SAELens: ``cfg.json`` and ``sae_weights.safetensors``, as its version 6 saves them for inference.

W_enc is [d, F]. Architectures: topk, jumprelu, gated, standard (ReLU). batchtopk has no inference form of its own
there: like SAELens itself we write it as jumprelu, with the one threshold for every latent.

Files of version 5 name the activation apart from the architecture; "standard" with a topk activation, read as ReLU,
would be another dictionary without anyone noticing. What is not known is therefore refused.
"""

from pathlib import Path
from typing import Any, Final

from safetensors.torch import save_file

from hydrophoned.formats.errors import NotCarried
from hydrophoned.formats.exchange import Exchange, unit
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
from hydrophoned.learn.sae.files import read_tensors

NAME: Final = "saelens"
CONFIG: Final = "cfg.json"
WEIGHTS: Final = "sae_weights.safetensors"
_VARIANTS: Final[dict[str, Variant]] = {"topk": "topk", "jumprelu": "jumprelu", "gated": "gated", "standard": "l1"}
_ARCHITECTURES: Final = {variant: name for name, variant in _VARIANTS.items()} | {
    "matryoshka": "topk",
    "batchtopk": "jumprelu",
}
_LAYOUT: Final = "6.0.0"  # without a version of at least 6 the file would be read as one of version 5
_OLD_KEYS: Final = ("activation_fn", "activation_fn_str", "activation_fn_kwargs", "finetuning_scaling_factor")


def load(directory: Path) -> Exchange:
    """The dictionary in ``directory``. Raises CheckpointError if damaged, NotCarried for what we have no place for."""
    path = directory / CONFIG
    config = read_config(path)
    architecture, k = _architecture(path, config)
    d, F = count(path, config, "d_in"), count(path, config, "d_sae")
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d, F), "W_dec": (F, d), "b_dec": (d,)}
    own = {"gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "threshold")}.get(architecture, ("b_enc",))
    shapes |= dict.fromkeys(own, (F,))
    found = read_tensors(directory / WEIGHTS, shapes)
    if unknown := sorted(set(found) - set(shapes)):
        raise NotCarried(f"{directory / WEIGHTS} has {', '.join(unknown)}, which {architecture} of version 6 has not")
    tensors = working(found)
    about = section(path, config, "metadata")
    ours = section(path, about, OURS)
    variant, threshold = _VARIANTS[architecture], tensors.get("threshold")
    if threshold is not None and ours.get("variant") == "batchtopk" and bool((threshold == threshold[0]).all()):
        variant, threshold = "batchtopk", threshold[0].clone()
    if variant == "topk" and ours.get("variant") == "matryoshka":
        variant = "matryoshka"
    if k is None and "k" in ours:
        k = count(path, ours, "k")
    return Exchange(
        variant=variant,
        W_enc=tensors["W_enc"].T.contiguous(),
        W_dec=tensors["W_dec"],
        b_enc=tensors["b_gate" if architecture == "gated" else "b_enc"],
        b_dec=tensors["b_dec"],
        k=k,
        threshold=threshold,
        r_mag=tensors.get("r_mag"),
        b_mag=tensors.get("b_mag"),
        prefixes=own_prefixes(path, ours, F),
        centred=_flag(path, config, "apply_b_dec_to_input", default=True),
        rescaled=architecture == "topk" and _flag(path, config, "rescale_acts_by_decoder_norm", default=False),
        metadata={
            "model": about.get("model_name", config.get("model_name")),
            "site": about.get("hook_name", config.get("hook_name")),
            "layer": about.get("hook_layer", config.get("hook_layer")),
            "notes": ours.get("notes"),
            "format": NAME,
            "config": config,
            "dtypes": dtypes(found),
        },
    )


def save(exchange: Exchange, directory: Path) -> None:
    """Write ``exchange`` to the new folder ``directory``."""
    x = exchange
    architecture = _ARCHITECTURES[x.variant]
    if x.rescaled and architecture != "topk":
        x = unit(x)  # only its topk knows codes in units of the decoder's norm
    encoder = {"W_enc": x.W_enc.T, "W_dec": x.W_dec, "b_dec": x.b_dec}
    if x.r_mag is not None and x.b_mag is not None:
        tensors = encoder | {"b_gate": x.b_enc, "b_mag": x.b_mag, "r_mag": x.r_mag}
    else:
        tensors = encoder | {"b_enc": x.b_enc}
    if x.threshold is not None:
        tensors["threshold"] = x.threshold.expand(x.features)
    tensors = as_recorded(tensors, x.metadata, NAME)
    before = x.metadata.get("config") if x.metadata.get("format") == NAME else None
    config: dict[str, Any] = {key: value for key, value in (before or {}).items() if key not in _OLD_KEYS}
    config |= {
        "architecture": architecture,
        "d_in": x.width,
        "d_sae": x.features,
        "dtype": str(tensors["W_enc"].dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": x.centred,
        "normalize_activations": "none",
        "reshape_activations": config.get("reshape_activations", "none"),
        "metadata": _metadata(x, config.get("metadata") or {}),
    }
    if architecture == "topk":
        config |= {"k": x.k, "rescale_acts_by_decoder_norm": x.rescaled}
    write_folder(directory, lambda draft: save_file(tensors, draft / WEIGHTS), CONFIG, config)


def _architecture(path: Path, config: dict[str, Any]) -> tuple[str, int | None]:
    """Architecture, and k where it has one; refuses what would be read as something else."""
    architecture = config.get("architecture", "standard")
    activation = config.get("activation_fn", config.get("activation_fn_str"))
    scaled = config.get("normalize_activations") or "none"
    if activation == "topk" and architecture in ("standard", "topk"):
        return "topk", count(path, section(path, config, "activation_fn_kwargs"), "k")
    if activation not in (None, "relu"):
        raise NotCarried(f"{path}: activation {activation!r} of {architecture!r} is not known: it is not read as ReLU")
    if architecture not in _VARIANTS:
        raise NotCarried(
            f"{path}: architecture {architecture!r} is not one of {', '.join(_VARIANTS)}. A checkpoint of a training "
            "run becomes one of them by SAELens' save_inference_model."
        )
    if scaled != "none":
        raise NotCarried(
            f"{path}: normalize_activations = {scaled!r} scales each row, or by a number that is not in the file. "
            "SAELens' save_inference_model folds the latter into the weights."
        )
    if config.get("finetuning_scaling_factor"):
        raise NotCarried(f"{path}: finetuning_scaling_factor is set; values scaled after encoding are not carried")
    return architecture, count(path, config, "k") if architecture == "topk" else None


def _flag(path: Path, config: dict[str, Any], name: str, *, default: bool) -> bool:
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise NotCarried(f"{path}: {name} = {value!r} is neither true nor false")
    return value


def _metadata(x: Exchange, before: dict[str, Any]) -> dict[str, Any]:
    ours = {"variant": x.variant, "k": x.k, "prefixes": list(x.prefixes), "notes": x.metadata.get("notes")}
    named = {"model_name": "model", "hook_name": "site", "hook_layer": "layer"}
    about = {key: x.metadata[name] for key, name in named.items() if x.metadata.get(name) is not None}
    kept = {name: value for name, value in ours.items() if value}
    return {"sae_lens_version": _LAYOUT} | about | before | {OURS: kept}
