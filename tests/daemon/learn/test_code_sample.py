"""The uniform sample of codes: who is in it, with what, and that splitting and restarting change nothing."""

import numpy as np
import torch
from hydrophoned.learn.code_sample import CodeSample
from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.metadata import RowMetadata

CPU = torch.device("cpu")


def numbered(start: int, stop: int, k: int = 3) -> tuple[Codes, RowMetadata]:
    """Rows whose number can be read off every column."""
    number = torch.arange(start, stop)
    codes = Codes((number[:, None] + torch.arange(k)).int(), number[:, None].float() + torch.arange(k) / 8 + 1)
    return codes, RowMetadata(number, *(number.int() for _ in range(4)), number * 1000)


def fed(sizes: list[int], capacity: int = 64, seed: int = 5) -> CodeSample:
    sample, start = CodeSample(3, capacity, seed, CPU), 0
    for size in sizes:
        sample.update(*numbered(start, start + size))
        start += size
    return sample


def test_every_row_held_has_its_own_codes_and_metadata():
    rows = fed([500] * 4).rows()
    assert rows.rows == 64
    np.testing.assert_array_equal(rows.index, rows.request[:, None] + np.arange(3))
    np.testing.assert_array_equal(rows.value[:, 0], rows.request + 1)
    np.testing.assert_array_equal(rows.time, rows.request * 1000)
    np.testing.assert_array_equal(rows.token, rows.request)
    assert len(set(rows.request.tolist())) == 64


def test_the_sample_is_uniform_over_the_stream():
    # the mean number of a uniform sample of 64 of 2000 is 999.5 with a standard error of 72; over 100 samples, 7.2
    means = [fed([250] * 8, seed=seed).rows().request.mean() for seed in range(100)]
    assert abs(np.mean(means) - 999.5) < 4 * 7.2
    early = np.mean([(fed([250] * 8, seed=seed).rows().request < 250).mean() for seed in range(100)])
    assert abs(early - 1 / 8) < 4 * np.sqrt(1 / 8 * 7 / 8 / 6400)


def test_a_sample_that_is_not_full_holds_all_rows():
    rows = fed([10, 20]).rows()
    assert rows.request.tolist() == list(range(30))


def test_narrow_codes_leave_the_rest_inactive():
    sample = CodeSample(3, 8, 0, CPU)
    sample.update(*numbered(0, 8))
    codes, metadata = numbered(8, 4000)
    sample.update(Codes(codes.index[:, :1], codes.value[:, :1]), metadata)
    assert (sample.rows().value[:, 1:] == 0).all()


def test_state_goes_on_exactly():
    whole, first = fed([100] * 6), fed([100] * 3)
    again = CodeSample(3, 64, 0, CPU)
    again.load_state(first.state_dict())
    for start in (300, 400, 500):
        again.update(*numbered(start, start + 100))
    for before, after in zip(whole.rows(), again.rows(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_without_capacity_nothing_is_kept():
    assert fed([50], capacity=0).rows().rows == 0
