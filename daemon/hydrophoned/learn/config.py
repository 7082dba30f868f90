"""Settings of one stream's learner."""

from dataclasses import dataclass
from typing import Final, Literal, get_args

from hydrophoned.learn.errors import InvalidConfig

Variant = Literal["topk", "batchtopk", "matryoshka", "jumprelu", "gated", "l1"]
VARIANTS: Final[tuple[str, ...]] = get_args(Variant)
EXACT: Final[tuple[str, ...]] = ("topk", "matryoshka")
"""Variants whose rows have k active latents each, at most; codes of the others are twice as wide."""
Normalise = Literal["scale", "whiten", "control"]
WHITENING_ROWS: Final = 10
"""Rows per element of a row that a covariance to whiten by is made from."""
_FEWEST_ROWS: Final = 64
_FEWEST_WHITENING_ROWS: Final = 2


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """Settings of one stream's learner; counts are in rows unless the field says otherwise."""

    variant: Variant = "topk"
    """How the active latents of a row are chosen; see ``sae``."""
    features: int = 0
    """Latents F of the dictionary; 0 means 8 times the row width."""
    k: int = 32
    """Active latents per row; at most the row width's number of latents."""
    batch_rows: int = 512
    """Rows of one training step, and of one pass of the statistics."""
    buffer_rows: int = 4096
    """Capacity of the shuffle buffer."""
    warmup_rows: int = 2048
    """Rows collected before the dictionary is initialised from them."""
    normalise: Normalise = "scale"
    """What makes rows comparable: mean and one scale; whitening by their own covariance, or by that of control rows."""
    normaliser_rows: int = 8192
    """Rows between two checks whether mean and scale, frozen with the first dictionary, still fit."""
    replay_share: float = 1 / 16
    """Rows of the reservoir that are learned again, per fresh row."""
    learn_rows_per_second: float = 0.0
    """Most fresh rows learned from per second of the rows' own time, the others are scored only; 0 means all."""
    learn_time_share: float = 0.0
    """Most of the time that passes that training steps may take, as a share; 0 and 1 mean no limit."""
    learning_rate: float = 5e-3
    """Step size at the start; it falls with the square root of the rows learned."""
    sink_norm_factor: float = 5.0
    """A row whose norm exceeds this many times the running median is neither learned nor scored, but counted."""
    dead_after_rows: int = 0
    """Rows after which a silent feature counts as dead; 0 means :func:`dead_after`."""
    examples_per_feature: int = 8
    """Top activating rows kept per feature."""
    reservoir_rows: int = 8192
    """Rows of the uniform sample of raw rows."""
    code_sample_rows: int = 32_768
    """Rows whose codes are kept, as a uniform sample, for questions about features."""
    window_seconds: float = 10.0
    """Length of a statistics window, in seconds."""
    split_by: tuple[str, ...] = ()
    """Attributes of requests by which statistics are split, besides the phase."""
    request_features_per_window: int = 8
    """Requests of a window, about, whose features are kept request by request."""
    publish_rows: int = 262_144
    """Learned rows between two looks at how far the dictionary has moved since its last version."""
    publish_moved: float = 0.3
    """Share of the codes that has to have changed for a new version; 0 publishes none for that."""
    probe_rows: int = 2048
    """Rows of the fixed sample on which versions are compared; at most those of the reservoir."""
    patience_seconds: float = 30.0
    """On a slow stream: time after which fewer than ``warmup_rows`` or a full buffer are enough to learn from."""
    seed: int = 0
    """Seed of everything random in this learner."""

    def __post_init__(self) -> None:
        for name in ("k", "batch_rows", "buffer_rows", "warmup_rows", "window_seconds", "publish_rows"):
            if getattr(self, name) <= 0:
                raise InvalidConfig(f"{name} = {getattr(self, name)} must be positive")
        if not 0 <= self.publish_moved <= 1:
            raise InvalidConfig(f"publish_moved = {self.publish_moved} is not from 0 to 1")
        if not 0 <= self.learn_time_share <= 1:
            raise InvalidConfig(f"learn_time_share = {self.learn_time_share} is not from 0 to 1")
        if self.normalise not in get_args(Normalise):
            raise InvalidConfig(f"normalise = {self.normalise!r} is not one of {', '.join(get_args(Normalise))}")

    def features_for(self, width: int) -> int:
        """Number of latents for rows of this width."""
        return self.features or 8 * width

    def dead_rows_for(self, width: int) -> int:
        """``dead_after_rows``, or what 0 means for rows of this width."""
        return self.dead_after_rows or dead_after(self.features_for(width), self.k_for(width))

    def k_for(self, width: int) -> int:
        """Active latents for rows of this width: a code wider than the row itself would say nothing."""
        return min(self.k, self.features_for(width), max(1, width // 2))

    def warmup_for(self, width: int) -> int:
        """Rows that the first dictionary waits for; those to whiten by have to tell a covariance [width, width]."""
        return max(self.warmup_rows, WHITENING_ROWS * width) if self.normalise == "whiten" else self.warmup_rows

    def buffer_for(self, width: int) -> int:
        """Capacity of the shuffle buffer: rows wait there for the first dictionary, so it holds all it waits for."""
        return max(self.buffer_rows, WHITENING_ROWS * width) if self.normalise == "whiten" else self.buffer_rows

    def fewest_rows_for(self, width: int) -> int:
        """Rows without which no dictionary is made, however long they are waited for."""
        return max(_FEWEST_ROWS, _FEWEST_WHITENING_ROWS * width) if self.normalise == "whiten" else _FEWEST_ROWS


def dead_after(features: int, k: int) -> int:
    """Rows in which the average of ``features`` latents fires 40 times, but at least 2048.

    With fewer, latents that are only rare are torn up; with many more, a large dictionary keeps idle ones.
    """
    return max(2048, 40 * features // k)
