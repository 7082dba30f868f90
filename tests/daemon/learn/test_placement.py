"""A learner that leaves its device and comes back. ``cpu:0`` stands for a device: torch takes it for another one."""

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from hydrophoned.learn.config import VARIANTS, LearnerConfig
from hydrophoned.learn.learner import _ON_HOST, StreamLearner
from hydrophoned.learn.memory import learner_bytes
from hydrophoned.learn.placement import MAIN_MEMORY, move, put, tensors
from hydrophoned.learn.sae import DictionaryConfig, SparseAutoencoder
from test_dictionary import assert_same_state as assert_same_tensors
from test_dictionary import planted
from test_learner import CONFIG, T0, assert_same_state, make_rows

DEVICE = torch.device("cpu", 0)
EACH = pytest.mark.parametrize("variant", VARIANTS)


class Pair(NamedTuple):
    first: torch.Tensor
    second: object


class Part:
    """Counts as one of the package's own."""

    __module__ = "hydrophoned.learn.something"

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class Full(torch.Tensor):
    """A tensor that there is no room for."""

    def to(self, *_, **__):
        raise torch.OutOfMemoryError("no room")


def test_tensors_are_found_in_whatever_depth_and_each_once():
    a, b, c = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    inner = Part(a=a, back=None)
    outer = Part(inner=inner, pairs=[(7, a), Pair(b, {"x": c})], text="no", number=3, foreign=object())
    inner.back = outer
    assert [id(t) for t in tensors(outer, inner)] == [id(a), id(b), id(c)]


def test_what_was_one_tensor_stays_one_and_containers_keep_their_kind():
    a, b = torch.arange(3.0), torch.arange(2)
    part = Part(a=a, same=a, pair=Pair(a, "text"), listed=[(1, b)], device=DEVICE, nested={"b": b})
    listed, nested = part.listed, part.nested
    move((part,), MAIN_MEMORY)
    assert part.a is part.same is part.pair.first
    assert part.a is not a
    assert torch.equal(part.a, a)
    assert type(part.pair) is Pair
    assert part.listed is listed
    assert part.nested is nested
    assert part.listed[0][1] is part.nested["b"]
    assert part.device == MAIN_MEMORY


def test_nothing_changes_where_there_is_no_room_for_all():
    a = torch.zeros(3)
    part = Part(a=a, full=torch.zeros(2).as_subclass(Full), device=MAIN_MEMORY)
    with pytest.raises(torch.OutOfMemoryError):
        move((part,), DEVICE)
    assert part.a is a
    assert part.device == MAIN_MEMORY


@EACH
def test_parts_of_a_learner_share_no_memory_by_which_moving_would_part_them(variant):
    """Two tensors of one memory would be two afterwards: what is written to one would not be seen in the other."""
    one = StreamLearner(1, 16, replace(CONFIG, variant=variant))
    one.observe(make_rows(2000))
    held = [t for t in tensors(*vars(one).values()) if t.numel()]
    assert len({t.untyped_storage().data_ptr() for t in held}) == len(held)


def test_what_is_on_the_device_and_what_stays_in_main_memory():
    """The device ``meta`` holds no values, but says where a tensor was made."""
    one = StreamLearner(1, 16, CONFIG, device=torch.device("meta"))
    on_host = tuple(vars(one)[name] for name in _ON_HOST)
    rest = {name: part for name, part in vars(one).items() if name not in _ON_HOST}
    for name, part in rest.items():
        assert {t.device.type for t in tensors(part, apart=on_host)} <= {"meta"}, name
    for name, part in zip(_ON_HOST, on_host, strict=True):
        assert {t.device.type for t in tensors(part, apart=tuple(rest.values()))} <= {"cpu"}, name


@EACH
def test_parked_and_woken_in_between_gives_the_same_to_the_bit(variant):
    config = replace(CONFIG, variant=variant)
    stayed, parked = (StreamLearner(7, 16, config, device=DEVICE) for _ in range(2))
    rows = make_rows(6000, step=5000)
    sizes = [700, 1, 2063, 64, 1172, 2000]
    start = 0
    for size in sizes:
        part = rows.slice(start, start + size)
        start += size
        for one in (stayed, parked):
            one.observe(part)
            one.advance(int(part.time[-1]))
        parked.park()
        assert parked.parked
        assert parked.device == parked.dictionary.device == MAIN_MEMORY
        parked.advance(int(part.time[-1]))
        assert parked.status() == stayed.status()
        parked.wake()
        assert not parked.parked
    assert_same_state(stayed, parked)
    for one in (stayed, parked):
        one.flush()
    assert_same_state(stayed, parked)
    for a, b in zip(stayed.take_closed(), parked.take_closed(), strict=True):
        assert all(a[name].equals(b[name]) for name in a)
    x = rows.activation[:50]
    for a, b in zip(stayed.encode(x), parked.encode(x), strict=True):
        assert (a == b).all()


def test_parked_all_works_but_patience():
    one = StreamLearner(7, 16, CONFIG, device=DEVICE)
    one.observe(make_rows(1984))  # no row waits for its chunk to become full
    one.park()
    learned = one.rows_learned
    one.advance(T0 + 10**9)
    one.advance(T0 + 2 * 10**9)
    assert one.rows_learned == learned
    assert one.take_closed()
    assert one.encode(make_rows(5).activation).finite.all()
    one.observe(make_rows(2000, start=T0 + 3 * 10**9))
    assert one.rows_learned > learned
    one.wake()
    one.advance(T0 + 4 * 10**9)
    assert not one.parked


def test_a_state_taken_while_parked_is_the_state():
    one, other = StreamLearner(7, 16, CONFIG, device=DEVICE), StreamLearner(7, 16, CONFIG)
    rows = make_rows(2000)
    one.observe(rows)
    other.observe(rows)
    one.park()
    assert_same_state(one, other)
    assert all(t.device.type == "cpu" for t in tensors(one.state_dict()))


def test_on_the_processor_parking_copies_nothing():
    one = StreamLearner(7, 16, CONFIG)
    one.observe(make_rows(1000))
    before = tensors(*vars(one).values())
    one.park()
    assert not one.parked
    assert all(a is b for a, b in zip(before, tensors(*vars(one).values()), strict=True))


def test_gone_for_good_it_learns_where_it_is():
    one = StreamLearner(7, 16, CONFIG, device=DEVICE)
    one.observe(make_rows(1000))
    one.to(MAIN_MEMORY)
    assert not one.parked
    learned = one.rows_learned
    one.advance(T0 + 10**9)
    assert one.rows_learned > learned


@EACH
def test_a_dictionary_by_itself_moves_too(variant):
    x, _ = planted(6000)
    config = DictionaryConfig(width=32, features=128, k=4, dead_after_rows=512, revive_every_rows=512, variant=variant)
    stayed, moved = (SparseAutoencoder(config, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    for each in (stayed, moved):
        each.initialise(x[:1024])
    for number, rows in enumerate(x.split(128)):
        for each in (stayed, moved):
            each.partial_fit(rows)
        if number % 7 == 3:
            assert moved.to(MAIN_MEMORY) is moved
    assert_same_tensors(stayed.state_dict(), moved.state_dict())
    assert (moved.latents.W_half is None) == (stayed.latents.W_half is None)


def test_where_it_cannot_move_a_dictionary_goes_on_where_it_is():
    x, _ = planted(2000)
    config = DictionaryConfig(width=32, features=128, k=4)
    stayed, refused = (SparseAutoencoder(config, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    for each in (stayed, refused):
        each.initialise(x[:1024])
    refused.extra = torch.zeros(1).as_subclass(Full)
    with pytest.raises(torch.OutOfMemoryError):
        refused.to(DEVICE)
    for rows in x.split(128):
        for each in (stayed, refused):
            each.partial_fit(rows)
    assert_same_tensors(stayed.state_dict(), refused.state_dict())


def test_what_is_put_on_the_device_it_is_on_is_not_copied():
    a = torch.zeros(3)
    assert put(a, MAIN_MEMORY) is a


@pytest.mark.parametrize(
    ("width", "settings"),
    [
        (16, {"features": 64, "k": 4, "batch_rows": 64, "buffer_rows": 2048, "reservoir_rows": 100}),
        (64, {"features": 0, "k": 8, "batch_rows": 1000, "buffer_rows": 4096, "examples_per_feature": 3}),
    ],
)
def test_the_bytes_worked_out_are_those_there_are(width, settings):
    config = LearnerConfig(warmup_rows=1500, **settings)
    one = StreamLearner(1, width, config)
    one.observe(make_rows(9000, d=width))  # of more requests than flags are kept of
    half = one.dictionary.latents.W_half is not None
    told = learner_bytes(config, width, half=half)

    def bytes_of(*holders):
        return sum(t.nbytes for t in tensors(*holders))

    products = one.dictionary._products.nbytes
    assert told.parameters + told.products == bytes_of(one.dictionary)
    assert told.products == products
    for name in ("examples", "sample", "buffer", "reservoir"):
        assert getattr(told, name) == bytes_of(getattr(one, name)), name
    assert 0.8 * told.statistics < bytes_of(one.statistics) <= told.statistics
    # the normaliser is small
    on_device = bytes_of(one.trainer, one.statistics, one.examples, one.sample)
    assert told.total - told.statistics < on_device < told.total + 1000 + 20 * width


@EACH
def test_a_variants_own_numbers_are_at_most_60_bytes_per_feature(variant):
    def parameters(name):
        config = DictionaryConfig(width=8, features=512, k=4, variant=name)
        return sum(t.nbytes for t in tensors(SparseAutoencoder(config, generator=torch.Generator())))

    assert 0 <= parameters(variant) - parameters("topk") <= 60 * 512 + 100
