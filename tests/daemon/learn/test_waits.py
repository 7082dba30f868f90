"""How often a learner waits for its device, on one that is simulated: what docs/explanation/gpu.md says."""

from dataclasses import replace

import pytest
import torch
from far import DEVICE, Far, FarKernels, FarTensor, near
from hydrophoned.learn.buffers import Reservoir, ShuffleBuffer
from hydrophoned.learn.config import VARIANTS
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.learn.metadata import RowMetadata
from hydrophoned.learn.normaliser import Normaliser
from hydrophoned.learn.placement import tensors
from test_dictionary import planted
from test_learner import CONFIG, T0, make_rows

EACH = pytest.mark.parametrize("variant", VARIANTS)
CHUNKS = 50
BATCH = CONFIG.batch_rows
NOW_AND_THEN = {"normaliser.py:renew", "autoencoder.py:_revive", "jumprelu.py:revive"}
OF_EXAMPLES = {"examples.py:update": 2, "examples.py:_best_per_request": 2, "examples.py:_ranks": 1}
OF_A_STEP = {
    "topk": {},
    "matryoshka": {},
    "batchtopk": {"batchtopk.py:select": 2, "batchtopk.py:_keep": 1},
    "jumprelu": {"jumprelu.py:select": 1},
    "gated": {"gated.py:select": 1},
    "l1": {"l1.py:select": 1},
}


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def far_learner(far, variant="topk"):
    one = StreamLearner(7, 16, replace(CONFIG, variant=variant, publish_rows=10**9), device=DEVICE)
    one.dictionary.kernels = one.dictionary._own_kernels = FarKernels(far)
    return one


@EACH
def test_a_chunk_waits_as_often_as_is_told(variant):
    rows = make_rows(BATCH * (20 + CHUNKS))
    with Far() as far:
        one = far_learner(far, variant)
        one.observe(rows.slice(0, BATCH * 20))
        assert one.dictionary_version == 1
        far.waits.clear()
        one.observe(rows.slice(BATCH * 20, BATCH * (20 + CHUNKS)))
        waits = dict(far.waits)
    seldom = {place: waits.pop(place) for place in list(waits) if place in NOW_AND_THEN}
    always = {"learner.py:_process": 1, "window.py:of": 1, **OF_A_STEP[variant]}
    for place, times in always.items():
        assert waits.pop(place) == times * CHUNKS, place
    for place, count in waits.items():
        assert count <= OF_EXAMPLES.get(place, 0) * CHUNKS, place
    assert sum(seldom.values()) < 2 * CHUNKS
    assert one.rows_learned > BATCH * CHUNKS / 2


def test_dead_latents_are_no_reason_to_wait():
    x, _ = planted(2048)
    with Far() as far:
        one = far_learner(far)
        dictionary = one.dictionary
        rows = FarTensor(x[:, :16].contiguous())
        dictionary.initialise(rows[:512])
        dictionary.silent_rows[:] = 10**6
        dictionary._any_dead = True
        before = near(dictionary.W_dec).clone()
        far.waits.clear()
        for part in rows[512:768].split(64):
            dictionary.partial_fit(part)
            dictionary.silent_rows[:] = 10**6
        assert not far.waits
    assert bool((near(dictionary.W_dec) != before).any(1).all())  # those that did not fire were moved by AuxK


def test_drawing_and_keeping_rows_waits_for_nothing():
    x, _ = planted(4096)
    metadata = RowMetadata.empty(64, torch.device("cpu"))
    with Far() as far:
        generator = torch.Generator().manual_seed(0)
        buffer, reservoir = ShuffleBuffer(32, 256, 64, generator, DEVICE), Reservoir(32, 100, generator, DEVICE)
        for part in x.split(64):
            rows = FarTensor(part)
            buffer.push(rows)
            reservoir.update(rows, metadata.to(DEVICE))
            reservoir.sample(5)
        assert not far.waits


@EACH
def test_what_is_learned_there_is_what_the_processor_learns(variant, monkeypatch):
    monkeypatch.setenv("HYDROPHONE_KERNELS", "plain")
    rows = make_rows(BATCH * 30)
    config = replace(CONFIG, variant=variant, publish_rows=10**9, dead_after_rows=10**9)  # there AuxK begins later
    with Far() as far:
        there = StreamLearner(7, 16, config, device=DEVICE)
        there.dictionary.kernels = there.dictionary._own_kernels = FarKernels(far)
        there.observe(rows)
        there.advance(T0 + 60_000_000)
        state = {part: {name: near(value) for name, value in held.items()} for part, held in there.state_dict().items()}
    here = StreamLearner(7, 16, config)
    here.dictionary.latents.W_half = None  # there are no fast products in bfloat16 on the simulated device
    here.observe(rows)
    here.advance(T0 + 60_000_000)
    for part, held in here.state_dict().items():
        for name, value in held.items():
            torch.testing.assert_close(
                torch.as_tensor(state[part][name]), torch.as_tensor(value), rtol=1e-4, atol=1e-6, msg=f"{part}.{name}"
            )
    for a, b in zip(here.take_closed(), there.take_closed(), strict=True):
        assert a["stream_window"]["rows_scored"] == b["stream_window"]["rows_scored"]


@EACH
def test_parked_and_woken_it_goes_on_to_the_bit(variant):
    rows = make_rows(BATCH * 40)
    with Far() as far:
        stayed, parked = far_learner(far, variant), far_learner(far, variant)
        for start in range(0, rows.count, BATCH * 8):
            for one in (stayed, parked):
                one.observe(rows.slice(start, start + BATCH * 8))
            on_device = sum(isinstance(t, FarTensor) for t in tensors(*vars(parked).values()))
            assert on_device == sum(isinstance(t, FarTensor) for t in tensors(*vars(stayed).values()))
            assert on_device > 40
            parked.park()
            assert not any(isinstance(t, FarTensor) for t in tensors(*vars(parked).values()))
            parked.advance(T0)
            parked.wake()
        one, other = ({p: near(v) for p, v in each.state_dict().items()} for each in (stayed, parked))
    for part, held in one.items():
        for name, value in held.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[part][name])), f"{part}.{name}"


def test_transforms_of_a_saved_state_come_to_the_device():
    """They are stacked with those that are made there."""
    x, _ = planted(4000)
    state = None
    for scale in (1.0, 4.0, 16.0):
        with Far():
            normaliser = Normaliser(32, 1000, DEVICE)
            if state is None:
                normaliser.update(FarTensor(x[:1000]))
                normaliser.freeze()
            else:
                normaliser.load_state(state)
            normaliser.update(FarTensor(x[1000:3000] * scale))
            normaliser.renew()
            assert all(isinstance(mean, FarTensor) for _, mean, _ in normaliser.transforms)
            state = {name: near(value) for name, value in normaliser.state_dict().items()}
    assert len(state["transforms.seen"]) == 2
