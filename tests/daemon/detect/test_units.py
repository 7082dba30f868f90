"""One summary of each request."""

import numpy as np
import pytest
import torch
from hydrophoned.detect.units import MAX_ROWS, UnitBuilder, Units
from hydrophoned.learn.metadata import RowMetadata
from hypothesis import given, settings
from hypothesis import strategies as st

WIDTH = 3
SECOND = 1_000_000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def metadata(request, time):
    empty = RowMetadata.empty(len(request), torch.device("cpu"))
    return empty._replace(request=torch.tensor(request), time=torch.tensor(time))


def built(builder, rows, request, time, *, chunk=None):
    """All units of the rows, given in chunks."""
    parts = []
    for start in range(0, len(rows), chunk or max(1, len(rows))):
        stop = start + (chunk or len(rows))
        parts.append(builder.update(rows[start:stop], metadata(request[start:stop], time[start:stop])))
    whole = Units.none(WIDTH, builder.sample_rows)
    for part in [*parts, builder.flush()]:
        whole = whole.join(part)
    return whole


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 200), st.integers(1, 12), st.integers(1, 50), st.integers(0, 10**6))
def test_units_are_means_of_the_rows_of_each_request(count, requests, chunk, seed):
    numbers = np.random.default_rng(seed)
    request = numbers.integers(0, requests, count).tolist()
    rows = torch.from_numpy(numbers.normal(size=(count, WIDTH))).float()
    time = (np.arange(count) * 1000).tolist()
    units = built(UnitBuilder(WIDTH, generator=seeded()), rows, request, time, chunk=chunk)
    assert sorted(units.request.tolist()) == sorted(set(request))
    for unit in range(units.count):
        own = [i for i, key in enumerate(request) if key == int(units.request[unit])]
        torch.testing.assert_close(units.mean[unit], rows[own].mean(0), rtol=1e-5, atol=1e-5)
        assert int(units.rows[unit]) == len(own)
        assert (int(units.start[unit]), int(units.end[unit])) == (time[own[0]], time[own[-1]])
        kept = units.sample[unit, : int(units.sampled[unit])]
        assert len(kept) == min(len(own), 4)
        among = (kept[:, None] == rows[own].bfloat16()[None]).all(2)
        assert among.any(1).all()
        assert len(torch.unique(kept, dim=0)) == len(torch.unique(rows[own].bfloat16(), dim=0)[: len(kept)])
    assert units.end.tolist() == sorted(units.end.tolist())


def test_a_request_ends_when_no_row_of_it_has_come_for_a_while():
    builder = UnitBuilder(WIDTH, generator=seeded(), idle_us=5 * SECOND)
    rows = torch.ones(1, WIDTH)
    assert builder.update(rows, metadata([7], [0])).count == 0
    assert builder.update(rows, metadata([8], [5 * SECOND])).count == 0
    ended = builder.update(rows, metadata([8], [5 * SECOND + 1]))
    assert ended.request.tolist() == [7]
    assert builder.open == 1
    again = builder.update(rows, metadata([7], [20 * SECOND]))
    assert again.request.tolist() == [8]
    assert builder.flush().request.tolist() == [7]


def test_a_request_goes_on_in_a_batch_that_reaches_over_a_long_time():
    builder = UnitBuilder(WIDTH, generator=seeded(), idle_us=5 * SECOND)
    assert builder.update(torch.ones(2, WIDTH), metadata([1, 2], [0, 0])).count == 0
    ended = builder.update(torch.ones(4, WIDTH), metadata([2, 3, 4, 5], [SECOND, 2 * SECOND, 60 * SECOND, 61 * SECOND]))
    assert (ended.request.tolist(), ended.rows.tolist()) == ([1, 2, 3], [1, 2, 1])
    assert builder.flush().request.tolist() == [4, 5]


def test_the_request_unseen_for_longest_gives_way():
    builder = UnitBuilder(WIDTH, generator=seeded(), max_open=3)
    rows = torch.ones(1, WIDTH)
    for time, key in enumerate([1, 2, 3, 1]):
        assert builder.update(rows, metadata([key], [time])).count == 0
    assert builder.update(rows, metadata([4], [4])).request.tolist() == [2]
    many = builder.update(torch.ones(9, WIDTH), metadata(list(range(10, 19)), list(range(5, 14))))
    assert many.count == 9
    assert builder.open == 3


def test_rows_without_a_request_are_taken_in_blocks():
    builder = UnitBuilder(WIDTH, generator=seeded())
    rows = torch.arange(150.0)[:, None].expand(150, WIDTH).contiguous()
    units = built(builder, rows, [-1] * 150, list(range(150)), chunk=40)
    assert units.rows.tolist() == [64, 64, 22]
    assert units.request.tolist() == [-1, -1, -1]
    assert units.mean[:, 0].tolist() == [31.5, 95.5, 138.5]


def test_a_very_long_request_is_one_unit_of_its_first_rows():
    builder = UnitBuilder(WIDTH, generator=seeded())
    count = MAX_ROWS + 500
    units = built(builder, torch.ones(count, WIDTH), [3] * count, list(range(count)), chunk=1000)
    assert units.rows.tolist() == [MAX_ROWS]
    assert units.end.tolist() == [count - 1]


def test_the_sample_is_uniform():
    first = []
    for seed in range(300):
        builder = UnitBuilder(WIDTH, generator=seeded(seed), sample_rows=2)
        rows = torch.arange(10.0)[:, None].expand(10, WIDTH).contiguous()
        units = built(builder, rows, [1] * 10, list(range(10)), chunk=3)
        first += units.sample[0, :, 0].tolist()
    counts = np.bincount(np.array(first, dtype=int), minlength=10)
    assert counts.sum() == 600
    assert counts.min() > 30
    assert counts.max() < 95


@pytest.mark.parametrize("sample_rows", [0, 4])
def test_state_goes_on_exactly(sample_rows):
    numbers = np.random.default_rng(1)
    rows = torch.from_numpy(numbers.normal(size=(90, WIDTH))).float()
    request, time = numbers.integers(-1, 6, 90).tolist(), list(range(90))

    def half(builder, part):
        return builder.update(rows[part], metadata(request[part], time[part]))

    generator = seeded(5)
    whole = UnitBuilder(WIDTH, generator=generator, sample_rows=sample_rows)
    half(whole, slice(0, 50))
    other_generator = seeded()
    other_generator.set_state(generator.get_state())
    other = UnitBuilder(WIDTH, generator=other_generator, sample_rows=sample_rows)
    other.load_state(whole.state_dict())
    half(whole, slice(50, 90))
    half(other, slice(50, 90))
    for a, b in zip(whole.flush(), other.flush(), strict=True):
        assert torch.equal(a, b)
