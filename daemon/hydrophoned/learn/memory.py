"""How many bytes a stream's learner holds, worked out from its settings; docs/explanation/gpu.md has the formulas."""

from typing import Final, NamedTuple

from hydrophone_schemas.buckets import BUCKETS

from hydrophoned.learn.config import EXACT, LearnerConfig
from hydrophoned.learn.request_counts import SIDE_BY_SIDE

_METADATA: Final = 32  # of a row: two columns of 8 bytes and four of 4
_STATISTICS: Final = 28 + 4 * BUCKETS + (4 + SIDE_BY_SIDE + 1) + 24  # of a feature: itself, sketch, requests, phases
_SCALE_ROWS: Final = 1024  # the first dictionary is scaled by the products of as many rows at once


class LearnerBytes(NamedTuple):
    """Bytes of the tensors of each part, between two steps.

    A variant's own numbers (60 bytes per feature at most), a whitening, statistics by attributes, and what a step holds
    for its own time are left out, as is what stays in main memory wherever the learner is.
    """

    parameters: int
    """Both matrices, their moments, the biases, and the encoder in bfloat16 where products are taken in it."""
    products: int
    statistics: int
    """At most: they grow with the requests of a window."""
    examples: int
    sample: int
    buffer: int
    reservoir: int

    @property
    def total(self) -> int:
        """Of all parts."""
        return sum(self)


def learner_bytes(config: LearnerConfig, width: int, *, half: bool) -> LearnerBytes:
    """Of a learner of rows of ``width``; ``half`` says whether products are taken in bfloat16."""
    F, d = config.features_for(width), width
    code = min(F, config.k_for(d) if config.variant in EXACT else 2 * config.k_for(d))
    rows = max(config.batch_rows + round(config.batch_rows * config.replay_share), _SCALE_ROWS)
    return LearnerBytes(
        parameters=F * (24 * d + 36) + 12 * d + (2 * F * d if half else 0),
        products=(2 if half else 4) * rows * F,
        statistics=(F + 8) * (_STATISTICS + 32 * config.request_features_per_window),
        examples=F * config.examples_per_feature * (13 + _METADATA),
        sample=config.code_sample_rows * (8 * code + _METADATA),
        buffer=4 * d * max(config.buffer_for(d), config.batch_rows),
        reservoir=config.reservoir_rows * (4 * d + _METADATA),
    )
