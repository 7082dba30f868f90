"""The buckets that a feature's activations are counted in: what the numbers in ``feature_window.buckets`` mean.

Each octave from 2^-6 to 2^10 is cut into 8 parts of equal width. Bucket b holds

    2^e (1 + m / 8) <= x < 2^e (1 + (m + 1) / 8),    e = b // 8 - 6, m = b mod 8

and the first and the last one also what lies below and beyond.
"""

from typing import Final

PER_OCTAVE: Final = 8
LOWEST_EXPONENT: Final = -6
OCTAVES: Final = 16
BUCKETS: Final = OCTAVES * PER_OCTAVE
RELATIVE_ERROR: Final = 1 / (2 * PER_OCTAVE + 1)
"""Most by which :func:`bucket_value` is off, as a share of what it stands for: that of an octave's first bucket."""


def bucket_ends(bucket: int) -> tuple[float, float]:
    """Where a bucket begins, and where the next one does.

    >>> bucket_ends(48), bucket_ends(49)
    ((1.0, 1.125), (1.125, 1.25))
    """
    if not 0 <= bucket < BUCKETS:
        raise ValueError(f"bucket = {bucket} is not in 0..{BUCKETS - 1}")
    octave, part = divmod(bucket, PER_OCTAVE)
    width = 2.0 ** (octave + LOWEST_EXPONENT) / PER_OCTAVE
    return width * (PER_OCTAVE + part), width * (PER_OCTAVE + part + 1)


def bucket_value(bucket: int) -> float | None:
    """What stands for a bucket's values: 2 a b / (a + b) of its ends, of all numbers the least far off from either.

    None for the first and the last bucket, which also hold what lies below and beyond.

    >>> round(bucket_value(48), 4)
    1.0588
    """
    low, high = bucket_ends(bucket)
    return 2 * low * high / (low + high) if 0 < bucket < BUCKETS - 1 else None
