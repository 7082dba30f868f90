"""What a variant of the autoencoder has to say."""

from typing import NamedTuple, Protocol

from torch import Tensor

from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.kernels import Adam, Kernels, Latents, Pairs


class Batch(NamedTuple):
    """What a variant sees of a batch: products ``p`` [n, F] without bias, the latents, and the kernels to use."""

    p: Tensor
    latents: Latents
    kernels: Kernels

    @property
    def rows(self) -> int:
        """Rows n."""
        return len(self.p)


class Gradient(NamedTuple):
    """Of each pair, in units of half a squared error: ``slope`` [m] reaches the encoder row through p.

    ``train_bias`` is False where b_enc has been moved by the variant itself, by the gradient ``bias`` [F].
    """

    slope: Tensor
    train_bias: bool = True
    bias: Tensor | None = None


class Variant(Protocol):
    """One way to choose active latents, and its loss."""

    groups: int
    """Parts of a row's pairs (nested prefixes); 1 without such parts."""
    bounded: bool
    """Whether the selection itself bounds how many latents are active."""

    def codes(self, batch: Batch) -> Codes:
        """Codes at inference."""
        ...

    def select(self, batch: Batch) -> Pairs:
        """Pairs of the batch in training; pairs of value 0 may be among them. Moves nothing that is state."""
        ...

    def backward(self, batch: Batch, pairs: Pairs, slope: Tensor, target: Tensor, adam: Adam) -> Gradient:
        """From ``slope`` [m], the gradient to each value, that to each p; moves what is the variant's own.

        ``target`` [n, d] are the centred rows. Everything is in units of half a squared error of the batch: a loss
        that is a mean over the n rows enters with n * d / 2 times its weight.
        """
        ...

    def initialise(self, batch: Batch) -> None:
        """Set what is the variant's own from the products of the first rows; may set b_enc."""
        ...

    def rescale(self, factor: float) -> None:
        """All of p was multiplied by ``factor``, by way of the encoder or its input."""
        ...

    def revive(self, latents: Tensor, living: Tensor) -> None:
        """``latents`` have begun anew, ``living`` (bool [F]) have not been dead."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """State of its own, by name: tensors that are loaded by copying into them."""
        ...
