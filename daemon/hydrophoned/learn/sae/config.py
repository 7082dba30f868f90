"""Settings of a dictionary."""

from dataclasses import dataclass

from hydrophoned.learn.config import EXACT, VARIANTS, Variant, dead_after
from hydrophoned.learn.errors import InvalidConfig


@dataclass(frozen=True, kw_only=True)
class DictionaryConfig:
    """Settings of a dictionary; counts are in rows unless the field says otherwise."""

    width: int
    """Row width d, in elements."""
    features: int
    """Number of latents F."""
    variant: Variant = "topk"
    """Which latents of a row are active, and what the loss holds besides the reconstruction."""
    k: int = 32
    """Active latents per row: exactly (topk, matryoshka), or on average (the others)."""
    learning_rate: float = 5e-3
    """Adam step size at the start, in units of a unit-norm decoder row."""
    encoder_rate: float = 0.5
    """Step size of the encoder, in units of the decoder's: its rows are shorter, and equal steps make the larger ones
    unstable."""
    decay_rows: int = 30_000
    """The step size falls as (1 + rows / decay_rows)^-1/2: it needs no horizon. In rows."""
    learning_rate_floor: float = 0.1
    """Share of ``learning_rate`` below which the step size does not fall, so that learning never ends."""
    dead_after_rows: int = 0
    """Rows after which a latent that has not fired counts as dead; 0 means ``dead_after``."""
    revive_every_rows: int = 0
    """Rows between two revivals of dead latents, and between two times that it is asked whether there are any; 0 means
    512, or 2048 where rows have differing numbers of active latents."""
    aux_k: int = 64
    """Dead latents per row that take part in the auxiliary reconstruction; 0 switches AuxK off."""
    aux_rows: int = 256
    """Rows of a batch, from its beginning, on which AuxK is taken: a row has ``aux_k`` pairs more in it."""
    aux_weight: float = 1 / 32
    """Weight of the auxiliary reconstruction."""
    prefixes: tuple[int, ...] = ()
    """matryoshka: ends of the nested prefixes, in latents, the last one F; empty means F/32, F/8, F/2, F."""
    sparsity: float = 0.03
    """jumprelu, gated, l1: weight of the sparsity loss at the start; a controller moves it until l0 is ``k``."""
    bandwidth: float = 0.3
    """jumprelu: width of the window around the threshold in which it receives a gradient."""
    low_precision: bool = True
    """Compute p in bfloat16 where the device has such products in hardware."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.features < 1:
            raise InvalidConfig(f"width {self.width} and features {self.features} must be at least 1")
        if not 1 <= self.k <= self.features:
            raise InvalidConfig(f"k = {self.k} is outside 1..features = {self.features}")
        if self.variant not in VARIANTS:
            raise InvalidConfig(f"variant {self.variant!r} is not one of {', '.join(VARIANTS)}")
        ends = self.prefixes
        if ends and (list(ends) != sorted(set(ends)) or ends[0] < 1 or ends[-1] != self.features):
            raise InvalidConfig(f"prefixes {ends} do not rise to features = {self.features}")

    @property
    def dead_rows(self) -> int:
        """``dead_after_rows``, or what 0 means."""
        return self.dead_after_rows or dead_after(self.features, self.k)

    @property
    def revive_rows(self) -> int:
        """``revive_every_rows``, or what 0 means: 512; 2048 where rows have differing numbers of active latents.

        At most half as many latents as a batch has rows are revived at a time, and a large dictionary needs more: hence
        often. Where nothing holds their number, what was revived has to find its size before more comes.
        """
        return self.revive_every_rows or (512 if self.variant in EXACT else 2048)

    @property
    def prefix_ends(self) -> tuple[int, ...]:
        """``prefixes``, or what empty ones mean."""
        F = self.features
        return self.prefixes or tuple(sorted({max(1, F // 32), max(1, F // 8), max(1, F // 2), F}))
