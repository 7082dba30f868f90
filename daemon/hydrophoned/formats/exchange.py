"""A dictionary between formats: plain tensors of one orientation, and what they mean.

With x a raw row, n_j the norm of decoder row j, and s_j = n_j where ``rescaled``, else 1:

    p_j   = s_j (<x - b_dec, W_enc[j]> + b_enc[j])     b_dec is not subtracted where not ``centred``
    z     = what the variant makes of p
    x_hat = sum over j of (z_j / s_j) W_dec[j] + b_dec

The tensors are those of the file that was read, so that writing them back gives the same bits. The dictionaries that
learn (:class:`~hydrophoned.learn.sae.SparseAutoencoder`) have ``centred`` rows and decoder rows of norm 1;
:func:`to_dictionary` folds what differs into the weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor

from hydrophoned.formats.errors import FormatError, NotCarried
from hydrophoned.learn.config import Variant
from hydrophoned.learn.errors import CheckpointError
from hydrophoned.learn.sae import DictionaryConfig, SparseAutoencoder

TENSORS: Final = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "r_mag", "b_mag")
"""Names of the fields that hold tensors."""
COMPETING: Final = ("topk", "matryoshka", "batchtopk")
"""Variants whose latents compete by size: scaling one against the others changes which are active."""
MOST_UNKNOWN_K: Final = 512
"""k of a dictionary whose file names none, at most: codes hold twice as many latents of a row."""
_UNIT: Final = 1e-5
_LEAST_THRESHOLD: Final = 1e-30  # its logarithm is what is trained, and 0 has none


@dataclass(frozen=True, kw_only=True, eq=False)
class Exchange:
    """A dictionary of F latents of raw rows of width d. See the module for the equations."""

    variant: Variant
    W_enc: Tensor
    """Encoder rows [F, d], float32 or float64."""
    W_dec: Tensor
    """Decoder rows [F, d]."""
    b_enc: Tensor
    """Bias of p, [F]; of a gated dictionary the gate's."""
    b_dec: Tensor
    """Bias of the reconstruction, [d]."""
    k: int | None = None
    """Active latents per row, exactly or on average; None where the file does not say."""
    threshold: Tensor | None = None
    """batchtopk: scalar; jumprelu: [F]. p at or below it is not active; below 0 it means 0."""
    r_mag: Tensor | None = None
    """gated: logarithm of the magnitude's scale, [F]."""
    b_mag: Tensor | None = None
    """gated: bias of the magnitude, [F]."""
    prefixes: tuple[int, ...] = ()
    """Ends of the nested prefixes of a Matryoshka dictionary, rising to F; they do not matter for its codes."""
    centred: bool = True
    """Whether b_dec is subtracted from a row before it is encoded."""
    rescaled: bool = False
    """Whether p, and so the codes, are in units of the decoder row's norm."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """JSON: ``model``, ``site``, ``layer``, ``notes``; ``format`` and ``config`` of the file, and its ``dtypes``."""

    def __post_init__(self) -> None:
        F, d = self.W_enc.shape
        shapes = {"W_dec": (F, d), "b_enc": (F,), "b_dec": (d,), "r_mag": (F,), "b_mag": (F,)}
        shapes["threshold"] = () if self.variant == "batchtopk" else (F,)
        needed = {"batchtopk": ("threshold",), "jumprelu": ("threshold",), "gated": ("r_mag", "b_mag")}
        for name, shape in shapes.items():
            tensor = getattr(self, name)
            if tensor is None and name in needed.get(self.variant, ()):
                raise CheckpointError(f"a {self.variant} dictionary needs {name}")
            if tensor is not None and tensor.shape != shape:
                raise CheckpointError(f"{name} is {list(tensor.shape)}, not {list(shape)}")
        if self.k is not None and not 1 <= self.k <= F:
            raise CheckpointError(f"k = {self.k} is outside 1..{F}, the number of latents")

    @property
    def features(self) -> int:
        """Latents F."""
        return len(self.W_enc)

    @property
    def width(self) -> int:
        """Row width d."""
        return self.W_enc.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors there are, by name."""
        return {name: tensor for name in TENSORS if (tensor := getattr(self, name)) is not None}


def from_dictionary(
    dictionary: SparseAutoencoder,
    *,
    mean: Tensor | None = None,
    scale: float = 1.0,
    whitening: Tensor | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Exchange:
    """``dictionary``, which knows rows y, as one of raw rows x.

    y = (x - ``mean``) * ``scale``, or, with a matrix A = ``whitening`` [d, d], y = A (x - ``mean``). With a scale the
    codes' values become those of x (z / scale) and decoder rows keep norm 1. With a matrix the values stay as they are,
    and decoder rows, A^-1 w, have any norm. Computed in float64. Raises :class:`FormatError` for a matrix without an
    inverse, or a scale that is not above 0.
    """
    own = {name: tensor.detach().to("cpu", copy=True) for name, tensor in dictionary.tensors().items()}
    config = dictionary.config
    threshold = own.get("threshold")
    if "log_threshold" in own:
        threshold = own["log_threshold"].exp()
    plain = Exchange(
        variant=config.variant,
        W_enc=own["W_enc"],
        W_dec=own["W_dec"],
        b_enc=own["b_enc"],
        b_dec=own["b_dec"],
        k=config.k,
        threshold=threshold,
        r_mag=own.get("log_scale"),
        b_mag=own.get("magnitude_bias"),
        prefixes=config.prefix_ends if config.variant == "matryoshka" else config.prefixes,
        metadata=dict(metadata or {}),
    )
    if whitening is not None:
        return _unwhitened(plain, whitening.cpu(), mean)
    if mean is None and scale == 1:
        return plain
    return _unscaled(plain, mean, scale)


def to_dictionary(exchange: Exchange, *, device: torch.device | None = None) -> SparseAutoencoder:
    """A dictionary of raw rows that gives the codes and the reconstructions of ``exchange``, and can learn on.

    Decoder rows get norm 1, and values take it over. Where latents compete by size (``COMPETING``) and norms differ,
    that would change which are active: such rows stay as they are, and only learning on makes their norm 1.
    :func:`remarks` says when. Products are computed in full precision.
    """
    x = unit(centred(exchange)) if can_be_unit(exchange) else centred(exchange)
    config = DictionaryConfig(
        width=x.width,
        features=x.features,
        variant=x.variant,
        k=x.k or min(MOST_UNKNOWN_K, max(1, x.features // 2)),
        prefixes=x.prefixes,
        low_precision=False,
    )
    dtype = x.W_enc.dtype
    dictionary = SparseAutoencoder(config, generator=torch.Generator().manual_seed(0), device=device, dtype=dtype)
    state = dictionary.state_dict()
    state |= {"W_enc": x.W_enc, "W_dec": x.W_dec, "b_enc": x.b_enc, "b_dec": x.b_dec}
    if x.threshold is not None and x.variant == "batchtopk":
        state["threshold"] = x.threshold.clamp_min(0)
    if x.threshold is not None and x.variant == "jumprelu":
        state["log_threshold"] = x.threshold.clamp_min(_LEAST_THRESHOLD).log()
    if x.r_mag is not None and x.b_mag is not None:
        state |= {"log_scale": x.r_mag, "magnitude_bias": x.b_mag}
    given = {
        name: one.to(dtype) if isinstance(one, Tensor) and one.is_floating_point() else one
        for name, one in state.items()
    }
    given |= {name: state[name] for name in state if name.startswith("sparsity.")}  # float64 whatever the dtype
    return dictionary.load_state(given)


def remarks(exchange: Exchange) -> list[str]:
    """What a user should know of ``exchange`` as a dictionary here; one sentence each."""
    found = []
    if exchange.k is None:
        k = min(MOST_UNKNOWN_K, max(1, exchange.features // 2))
        found.append(f"the file does not say how many latents are active: codes hold the {2 * k} largest of a row")
    elif exchange.variant not in ("topk", "matryoshka"):
        found.append(f"codes hold the {min(2 * exchange.k, exchange.features)} largest active latents of a row")
    if not can_be_unit(exchange):
        norms = torch.linalg.vector_norm(exchange.W_dec, dim=1)
        found.append(
            f"decoder rows have norms {float(norms.min()):.3g} to {float(norms.max()):.3g} and stay as they are, since "
            "scaling them would change which latents are active; learning on would make them 1"
        )
    return found


# -- foldings ---------------------------------------------------------------------------------------------------------


def centred(x: Exchange) -> Exchange:
    """The same dictionary, with b_dec subtracted before encoding."""
    return x if x.centred else _shifted(x, x.W_enc.double() @ x.b_dec.double(), centred=True)


def uncentred(x: Exchange) -> Exchange:
    """The same dictionary, without b_dec subtracted before encoding."""
    return _shifted(x, -(x.W_enc.double() @ x.b_dec.double()), centred=False) if x.centred else x


def can_be_unit(x: Exchange) -> bool:
    """Whether decoder rows can have norm 1 with the same latents active."""
    if x.rescaled or x.variant not in COMPETING:
        return True
    norms = torch.linalg.vector_norm(x.W_dec, dim=1)
    return bool(norms.max() - norms.min() <= _UNIT * norms.max())


def unit(x: Exchange) -> Exchange:
    """The same dictionary with decoder rows of norm 1, not ``rescaled``: values take over the norm.

    Rows whose norms are 1 but for rounding stay as they are, bit for bit. Raises :class:`NotCarried` unless
    :func:`can_be_unit`.
    """
    if not can_be_unit(x):
        raise NotCarried(
            f"decoder rows of this {x.variant} dictionary have differing norms, and scaling them would change which "
            "latents are active. The formats sparsify and saelens take them as they are."
        )
    norms = torch.linalg.vector_norm(x.W_dec.double(), dim=1)
    if bool(((norms - 1).abs() <= _UNIT).all()):
        return replace(x, rescaled=False)
    if not x.rescaled and x.variant in COMPETING:
        norms = norms.mean().expand_as(norms)  # one factor for all keeps their order to the last bit
    values = norms.clamp_min(1e-12)
    changed = {"W_dec": x.W_dec.double() / values[:, None]}
    if x.variant == "gated":
        if x.r_mag is None or x.b_mag is None:
            raise CheckpointError("a gated dictionary needs r_mag and b_mag")
        changed |= {"r_mag": x.r_mag.double() + values.log(), "b_mag": x.b_mag.double() * values}
    else:
        changed |= {"W_enc": x.W_enc.double() * values[:, None], "b_enc": x.b_enc.double() * values}
        if x.threshold is not None and not x.rescaled:
            changed["threshold"] = x.threshold.double() * (values[0] if x.variant == "batchtopk" else values)
    return replace(_cast(x, changed), rescaled=False)


def _shifted(x: Exchange, shift: Tensor, *, centred: bool) -> Exchange:
    """``x`` with ``shift`` [F] added to every <x, W_enc[j]>."""
    changed = {"b_enc": x.b_enc.double() + shift}
    if x.r_mag is not None and x.b_mag is not None:
        changed["b_mag"] = x.b_mag.double() + x.r_mag.double().exp() * shift
    return replace(_cast(x, changed), centred=centred)


def _unscaled(x: Exchange, mean: Tensor | None, scale: float) -> Exchange:
    if not 0 < scale < float("inf"):
        raise FormatError(f"the normaliser's scale is {scale}; it must be above 0")
    b_dec = x.b_dec.double() / scale
    changed = {"b_enc": x.b_enc.double() / scale, "b_dec": b_dec if mean is None else b_dec + mean.cpu().double()}
    for name, tensor in (("threshold", x.threshold), ("b_mag", x.b_mag)):
        if tensor is not None:
            changed[name] = tensor.double() / scale
    return _cast(x, changed)


def _unwhitened(x: Exchange, matrix: Tensor, mean: Tensor | None) -> Exchange:
    try:
        inverse = torch.linalg.inv(matrix.double())
    except RuntimeError as error:
        raise FormatError(f"the whitening matrix {list(matrix.shape)} has no inverse: {error}") from error
    b_dec = inverse @ x.b_dec.double()
    return _cast(
        x,
        {
            "W_enc": x.W_enc.double() @ matrix.double(),
            "W_dec": x.W_dec.double() @ inverse.T,
            "b_dec": b_dec if mean is None else b_dec + mean.cpu().double(),
        },
    )


def _cast(x: Exchange, changed: Mapping[str, Tensor]) -> Exchange:
    """``x`` with tensors replaced, each in the dtype it had."""
    tensors: dict[str, Any] = {name: tensor.to(getattr(x, name).dtype) for name, tensor in changed.items()}
    return replace(x, **tensors)
