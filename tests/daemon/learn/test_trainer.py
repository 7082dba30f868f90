import math

import pytest
import torch
from hydrophoned.learn.buffers import Reservoir
from hydrophoned.learn.change import ChangeWatch
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.learn.metadata import RowMetadata
from hydrophoned.learn.trainer import Trainer

CPU = torch.device("cpu")
D = 32


class Stream:
    """Rows of random sparse sums, fed to a trainer in chunks as a learner would."""

    def __init__(self, seed=0, *, clock=None, **settings):
        given = {"features": 128, "k": 4, "batch_rows": 128, "buffer_rows": 1024, "warmup_rows": 512}
        config = LearnerConfig(**(given | {"normaliser_rows": 2048} | settings))
        generator = torch.Generator().manual_seed(seed)
        self.reservoir = Reservoir(D, config.reservoir_rows, generator, CPU)
        self.trainer = Trainer(D, config, self.reservoir, generator, CPU, clock=clock)
        self.time = 1_700_000_000_000_000
        self.source = torch.Generator().manual_seed(seed + 1)

    def basis(self, atoms=48):
        return torch.nn.functional.normalize(torch.randn(atoms, D, generator=self.source), dim=1)

    def rows(self, n, basis, scale=1.0, shift=0.0):
        on = torch.rand(n, len(basis), generator=self.source) < 3 / len(basis)
        return (on * torch.rand(n, len(basis), generator=self.source)) @ basis * scale + shift

    def feed(self, x, *, per_second=10_000):
        for part in x.split(128):
            self.time += int(len(part) / per_second * 1e6)
            y = self.trainer.apply(part)
            if self.trainer.version:
                self.trainer.observe(self.fvu(part), len(part))
            nothing = RowMetadata.empty(len(part), CPU)
            self.reservoir.update(part, nothing)
            self.trainer.take(part, y, self.time)
            if self.trainer.normaliser.frozen:
                self.trainer.normaliser.update(part)
            self.trainer.renormalise()

    def fvu(self, x):
        y = self.trainer.apply(x)
        error = self.trainer.dictionary.decode(self.trainer.dictionary.encode(y, exact=True)) - y
        return float(error.square().sum() / (y - y.mean(0)).square().sum())


def test_mean_and_scale_stay_once_there_is_a_dictionary():
    stream = Stream()
    basis = stream.basis()
    stream.feed(stream.rows(512, basis))
    assert stream.trainer.version == 1
    mean, scale = stream.trainer.normaliser.mean.clone(), stream.trainer.normaliser.scale
    stream.feed(stream.rows(8192, basis, 1.1))
    assert torch.equal(mean, stream.trainer.normaliser.mean)
    assert stream.trainer.normaliser.scale == scale
    y = stream.trainer.apply(stream.rows(4096, basis))
    assert abs(float(y.square().sum(1).mean()) / D - 1) < 0.2


@pytest.mark.parametrize("variant", ["topk", "batchtopk", "matryoshka", "jumprelu", "gated", "l1"])
def test_a_new_transform_changes_units_and_nothing_else(variant):
    stream = Stream(variant=variant)
    basis = stream.basis()
    stream.feed(stream.rows(20_000, basis))
    probe = stream.rows(400, basis)
    trainer = stream.trainer
    before = trainer.dictionary.encode(trainer.apply(probe), exact=True)
    rebuilt = trainer.normaliser.invert(trainer.dictionary.decode(before))
    trainer.normaliser.update(stream.rows(4096, basis, 3.0, 1.0))
    content = trainer.normaliser.invert(trainer.buffer.content)
    done = trainer.renormalise()
    assert done is not None
    assert trainer.version == 2
    assert len(trainer.normaliser.transforms) == 1
    after = trainer.dictionary.encode(trainer.apply(probe), exact=True)
    dense = [torch.zeros(400, 128).scatter_add_(1, c.index.long(), c.value) for c in (before, after)]
    close = torch.isclose(dense[0] * done.factor, dense[1], atol=1e-3, rtol=1e-3).all(1)
    assert close.float().mean() > 0.99  # near ties may fall the other way
    again = trainer.normaliser.invert(trainer.dictionary.decode(after))
    torch.testing.assert_close(again[close], rebuilt[close], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(trainer.normaliser.invert(trainer.buffer.content), content, atol=1e-3, rtol=1e-3)


def test_a_stream_whose_scale_grows_tenfold_is_learned_again_under_its_new_transform():
    stream = Stream()
    basis = stream.basis()
    stream.feed(stream.rows(20_000, basis))
    decoder = stream.trainer.dictionary.W_dec.clone()
    good = stream.fvu(stream.rows(2000, basis))
    stream.feed(stream.rows(10_000, basis, 10.0))
    assert stream.trainer.version >= 2
    assert stream.fvu(stream.rows(2000, basis, 10.0)) < good + 0.05
    found = (basis @ decoder.T).max(1)
    latents = found.indices[found.values > 0.9]
    assert len(latents) > 30
    same = (decoder * stream.trainer.dictionary.W_dec).sum(1)[latents]
    assert (same > 0.8).float().mean() > 0.9


def test_replay_keeps_what_has_become_rare():
    kept = {}
    for share in (0.0, 0.25):
        stream = Stream(replay_share=share, dead_after_rows=512)
        first, second = stream.basis(), stream.basis()
        stream.feed(stream.rows(20_000, first))
        stream.feed(stream.rows(40_000, second))
        kept[share] = stream.fvu(stream.rows(3000, first))
        assert (stream.trainer.rows_replayed > 0) == (share > 0)
    assert kept[0.25] < 0.7 * kept[0.0]


def test_the_budget_bounds_what_is_learned_per_second_of_the_rows_own_time():
    stream = Stream(learn_rows_per_second=1000.0)
    basis = stream.basis()
    stream.feed(stream.rows(40_000, basis), per_second=4000)
    trainer = stream.trainer
    assert trainer.rows_learned + trainer.rows_skipped + trainer.buffer.count == 40_000
    assert 9_000 < trainer.rows_learned < 11_500


def test_rows_within_the_budget_are_all_learned():
    stream = Stream(learn_rows_per_second=1000.0)
    stream.feed(stream.rows(20_000, stream.basis()), per_second=800)
    assert stream.trainer.rows_skipped == 0


def test_state_goes_on_exactly():
    one = Stream(learn_rows_per_second=2000.0)
    basis = one.basis()
    x = one.rows(12_000, basis)
    one.feed(x[:6016], per_second=3000)
    other = Stream(learn_rows_per_second=2000.0)
    for part in ("dictionary", "normaliser", "buffer"):
        state = getattr(one.trainer, part).state_dict()
        copied = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in state.items()}
        getattr(other.trainer, part).load_state(copied)
    other.trainer.load_state(dict(one.trainer.state_dict()))
    other.reservoir.load_state(one.reservoir.state_dict())
    other.trainer.dictionary.generator.set_state(one.trainer.dictionary.generator.get_state())
    other.time = one.time
    for stream in (one, other):
        stream.feed(x[6016:], per_second=3000)
    assert one.trainer.state_dict() == other.trainer.state_dict()
    assert torch.equal(one.trainer.dictionary.W_dec, other.trainer.dictionary.W_dec)


def watch(levels, rows=512):
    one = ChangeWatch()
    return one, [one.update(level, rows) for level in levels]


def test_a_steady_noisy_fvu_is_no_change():
    generator = torch.Generator().manual_seed(0)
    noise = torch.exp(0.1 * torch.randn(4000, generator=generator))
    one, rises = watch((0.2 * noise).tolist())
    assert one.calls == 0
    assert not any(rises)


def test_learning_itself_is_no_change():
    one, _ = watch([0.7 / math.sqrt(1 + step / 20) for step in range(2000)])
    assert one.calls == 0


def test_a_rise_is_one_change_and_tells_how_far():
    one, rises = watch([0.2] * 200 + [0.4] * 400)
    assert one.calls == 1
    assert abs(max(rises) - math.log(2)) < 0.05
    assert rises[-1] == 0
    other = ChangeWatch()
    other.load_state(one.state_dict())
    assert other.state_dict() == one.state_dict()


def test_fvu_that_is_not_known_changes_nothing():
    one, rises = watch([math.nan, 0.0, -1.0])
    assert rises == [0.0, 0.0, 0.0]
    assert not one.known


def test_after_a_change_steps_are_large_again_and_latents_are_given_up_sooner():
    stream = Stream(features=64)
    first, second = stream.basis(), stream.basis()
    stream.feed(stream.rows(80_000, first))
    assert stream.trainer.change.calls == 0
    slow = stream.trainer.dictionary.learning_rate
    stream.feed(stream.rows(10_000, second))
    assert stream.trainer.change.calls == 1
    assert stream.trainer.dictionary.learning_rate > 1.3 * slow
    stream.trainer.dictionary.silent_rows[:] = stream.trainer.dictionary.config.dead_rows // 2
    assert bool(stream.trainer.dictionary.dead.all())
