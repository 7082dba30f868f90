"""The controller of the sparsity weight, on simulated dictionaries of which the answer to a weight is known."""

import math

import pytest
import torch
from hydrophoned.learn.sae.own import SparsityController

CPU = torch.device("cpu")


def run(plant, *, target=32, weight=0.03, steps=600, rows=256, controller=None):
    """l0 after every step of a plant that answers a weight with an l0, and the controller."""
    controller = controller or SparsityController(weight, target, CPU)
    seen = []
    for _ in range(steps):
        l0 = plant(float(controller.weight))
        controller.observe(torch.tensor(round(l0 * rows)), rows)
        seen.append(l0)
    return seen, controller


class Slow:
    """l0 goes a share of the way to what the weight asks for, at each step: a dictionary has to learn first."""

    def __init__(self, at_once, *, share=0.05, start=300.0):
        self.at_once, self.share, self.l0 = at_once, share, start

    def __call__(self, weight):
        self.l0 += self.share * (self.at_once(weight) - self.l0)
        return self.l0


def power(weight):
    """Ten times the weight leaves a third of the latents active."""
    return min(1536.0, 32 * (weight / 3.0) ** -0.5)


@pytest.mark.parametrize("weight", [1e-4, 0.03, 3.0, 500.0])
def test_the_l0_of_a_plant_that_answers_at_once_comes_to_the_target(weight):
    seen, controller = run(power, weight=weight)
    assert all(abs(l0 - 32) < 2 for l0 in seen[-100:])
    assert float(controller.weight) == pytest.approx(3.0, rel=0.15)


@pytest.mark.parametrize("target", [1, 8, 32, 200])
def test_the_l0_of_a_slow_plant_comes_to_the_target(target):
    seen, _ = run(Slow(lambda weight: min(1536.0, 32 * (weight / 3.0) ** -0.5)), target=target, steps=2000)
    last = torch.tensor(seen[-300:])
    assert float(last.mean()) == pytest.approx(target, rel=0.05)
    assert bool(((last - target).abs() < 0.25 * target).all())


def test_noise_of_single_batches_does_not_carry_the_weight_away():
    generator = torch.Generator().manual_seed(0)
    seen, controller = run(
        lambda weight: power(weight) * float(torch.empty(()).log_normal_(0, 0.3, generator=generator)), steps=1500
    )
    assert sum(seen[-500:]) / 500 == pytest.approx(32, rel=0.15)
    assert 1.0 < float(controller.weight) < 9.0


def test_the_weight_rises_above_the_target_and_falls_below_it_at_a_bounded_pace():
    for l0, factor in ((10_000.0, math.exp(0.04)), (0.0, math.exp(-0.04))):
        controller = SparsityController(1.0, 32, CPU)
        before = 1.0
        for _ in range(200):
            controller.observe(torch.tensor(round(l0 * 10)), 10)
            ratio, before = float(controller.weight) / before, float(controller.weight)
            low, high = sorted((1.0, factor))
            assert low - 1e-12 <= ratio <= high + 1e-12
            assert ratio != 1.0
        assert ratio == pytest.approx(factor, rel=1e-6)


def test_at_the_target_the_weight_stays():
    controller = SparsityController(0.7, 5, CPU)
    for _ in range(50):
        controller.observe(torch.tensor(500), 100)
    assert float(controller.weight) == pytest.approx(0.7, rel=1e-12)
    assert float(controller.l0) == pytest.approx(5)


@pytest.mark.parametrize("l0", [0.0, 1e6])
def test_a_plant_that_does_not_answer_leaves_the_weight_finite_and_above_zero(l0):
    """Ten thousand steps of it: a stream of constant rows, or one that no penalty makes sparse."""
    _, controller = run(lambda _weight: l0, steps=10_000)
    assert math.isfinite(float(controller.weight))
    assert float(controller.weight) > 0


@pytest.mark.parametrize("l0", [0.0, 1e6])
def test_it_recovers_after_a_plant_that_did_not_answer(l0):
    """The weight must not have run away so far that it takes as long to come back."""
    _, controller = run(lambda _weight: l0, steps=10_000)
    seen, _ = run(power, steps=2000, controller=controller)
    assert sum(seen[-100:]) / 100 == pytest.approx(32, rel=0.1)


def test_the_number_of_rows_does_not_matter():
    weights = []
    for rows in (1, 7, 1000):
        controller = SparsityController(1.0, 4, CPU)
        for _ in range(20):
            controller.observe(torch.tensor(9 * rows), rows)
        weights.append(float(controller.weight))
    assert weights == pytest.approx([weights[0]] * 3, rel=1e-6)


def test_it_goes_on_exactly_from_its_tensors():
    whole, half = SparsityController(0.5, 16, CPU), SparsityController(0.5, 16, CPU)
    active = torch.randint(0, 4000, (100,), generator=torch.Generator().manual_seed(0))
    for number in active:
        whole.observe(number, 100)
    for number in active[:40]:
        half.observe(number, 100)
    saved = {name: tensor.clone() for name, tensor in half.tensors().items()}
    resumed = SparsityController(123.0, 16, CPU)
    for name, tensor in resumed.tensors().items():
        tensor.copy_(saved[name])  # as a dictionary loads its state
    for number in active[40:]:
        resumed.observe(number, 100)
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, resumed.tensors()[name]), name


def test_signed_it_brings_back_what_does_not_come_back_by_itself():
    """A plant that keeps what a weight did to it, as risen thresholds do: only a weight below 0 lowers them."""
    controller = SparsityController(0.03, 32, CPU, signed=True)
    for start in (400.0, 1.0):
        level, seen, lowest = math.log(start), [], 0.0
        for _ in range(3000):
            controller.observe(torch.tensor(round(math.exp(level) * 256)), 256)
            weight = float(controller.weight)
            level = min(max(level - 0.01 * max(-1.0, min(1.0, weight)), -2.0), 7.0)
            lowest = min(lowest, weight)
            seen.append(math.exp(level))
        assert sum(seen[-300:]) / 300 == pytest.approx(32, rel=0.15)
        if start < 32:
            assert lowest < 0


def test_signed_the_weight_stays_finite():
    for l0 in (0.0, 1e6):
        controller = SparsityController(0.03, 32, CPU, signed=True)
        for _ in range(5000):
            controller.observe(torch.tensor(round(l0)), 1)
        assert math.isfinite(float(controller.weight))
        assert (float(controller.weight) > 0) == (l0 > 32)


def test_damped_it_stops_before_it_is_past_the_target():
    """A plant that follows late, as a dictionary does: undamped, l0 falls far below k before it comes back."""

    def plant():
        return Slow(lambda weight: min(1536.0, 32 * (weight / 3.0) ** -0.5), share=0.03)

    lowest = {}
    for damping in (0.0, 1.0):
        seen, controller = run(plant(), steps=2000, controller=SparsityController(0.03, 32, CPU, damping=damping))
        lowest[damping] = min(seen)
        assert sum(seen[-100:]) / 100 == pytest.approx(32, rel=0.05)
        assert float(controller.weight) == pytest.approx(3.0, rel=0.15)
    assert lowest[1.0] > lowest[0.0] + 3
    assert lowest[1.0] > 0.75 * 32


def test_damped_at_the_target_the_weight_stays():
    controller = SparsityController(0.7, 5, CPU, damping=1.0)
    for _ in range(50):
        controller.observe(torch.tensor(500), 100)
    assert float(controller.weight) == pytest.approx(0.7, rel=1e-12)
