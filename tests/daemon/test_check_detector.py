import pytest
import torch
from hydrophoned.detect.classifier import ClassifierDetector
from hydrophoned.detect.detector import Detection, Guarantee
from hydrophoned.detect.e_detector import EDetector
from hydrophoned.detect.errors import ReferenceMismatch
from hydrophoned.detect.fired import Fired
from hydrophoned.detect.firing import FiringDetector
from hydrophoned.detect.scan import ScanDetector
from hydrophoned.testing import check_detector

WIDTH = 12
RUN_LENGTH = 1_000.0
FEATURES = 64


def same(count, generator):
    return 3.0 + torch.randn(count, WIDTH, generator=generator) * torch.arange(1, WIDTH + 1)


def changed(count, generator):
    return same(count, generator) + torch.arange(1, WIDTH + 1)


def fired(count, generator, rate=0.1):
    fires = torch.rand(count, FEATURES, generator=generator) < rate
    offsets = torch.zeros(count + 1, dtype=torch.int64)
    offsets[1:] = fires.sum(1).cumsum(0)
    return Fired(offsets, fires.nonzero()[:, 1].int())


def fired_more(count, generator):
    return fired(count, generator, rate=0.2)


def made(kind):
    reference = same(1_000, torch.Generator().manual_seed(1))
    return lambda: kind(reference, run_length=RUN_LENGTH, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", [EDetector, ScanDetector, ClassifierDetector])
def test_every_detector_of_units_holds_to_the_contract(kind):
    check_detector(made(kind), same, changed)


def test_the_detector_of_firings_holds_to_the_contract():
    reference = fired(2_000, torch.Generator().manual_seed(1))
    check_detector(
        lambda: FiringDetector(
            reference, features=FEATURES, run_length=RUN_LENGTH, generator=torch.Generator().manual_seed(2)
        ),
        fired,
        fired_more,
    )


class Counting:
    """Holds to the contract: raises when the mean of 20 units' means has left the reference's by 6 standard errors."""

    name = "counting"
    guarantee = Guarantee.ASYMPTOTIC
    false_alarm_budget = RUN_LENGTH
    threshold = 6.0

    def __init__(self):
        self.units = self.left_out = 0
        self.sum, self.count, self.statistic = 0.0, 0, 0.0

    def update(self, x):
        if x.shape[1] != WIDTH:
            raise ReferenceMismatch(f"width {x.shape[1]}")
        found = []
        for row in x:
            unit = self.units + self.left_out
            if not self.usable(row):
                self.left_out += 1
                continue
            self.units += 1
            self.sum, self.count = self.sum + float((row - 3.0).clamp(-100, 100).mean()), self.count + 1
            if self.count == 20:
                self.statistic = abs(self.sum) / 20**0.5 / (26 / WIDTH) ** 0.5 * self.weight
                if self.statistic >= self.threshold:
                    found.append(self.found(unit))
                    self.after()
                self.sum, self.count = 0.0, 0
        return found

    weight = 1.0

    def usable(self, row):
        return bool(row.isfinite().all())

    def found(self, unit):
        return Detection(unit, self.statistic, self.threshold)

    def after(self):
        self.statistic = 0.0

    def state_dict(self):
        names = ("units", "left_out", "sum", "count", "statistic")
        return {name: getattr(self, name) for name in names}

    def load_state(self, state):
        self.__dict__.update(state)


def test_another_detector_that_holds_to_the_contract_passes():
    check_detector(Counting, same, changed)


class Nervous(Counting):
    threshold = 1.0


class Deaf(Counting):
    weight = 0.0


class Impatient(Counting):
    def update(self, x):
        found = super().update(x)
        self.sum, self.count = 0.0, 0
        return found


class Resentful(Counting):
    def after(self):
        pass


class Misplaced(Counting):
    def found(self, unit):
        return super().found(unit)._replace(unit=unit - 1)


class Forgetful(Counting):
    def state_dict(self):
        return super().state_dict() | {"sum": 0.0}


class Gullible(Counting):
    def usable(self, row):
        return not bool(row.isnan().any())


class Uncounted(Counting):
    def update(self, x):
        return super().update(x[x.isfinite().all(1)])


class Careless(Counting):
    def update(self, x):
        return super().update(x[:, :WIDTH])


class Hoarding(Counting):
    def update(self, x):
        self.kept = torch.cat([getattr(self, "kept", x[:0]), x])
        return super().update(x)

    def state_dict(self):
        return super().state_dict() | {"kept": getattr(self, "kept", torch.zeros(0, WIDTH))}


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        (Nervous, "alarms in .* units that had not changed"),
        (Deaf, "changed units raised nothing"),
        (Impatient, "changed units raised nothing|how units are split"),
        (Resentful, "does not begin anew"),
        (Misplaced, "is told of unit"),
        (Forgetful, "not the same after saving and loading"),
        (Gullible, "were left out"),
        (Uncounted, "were left out"),
        (Careless, f"width {WIDTH + 1} were taken"),
        (Hoarding, "more units made the state"),
    ],
)
def test_what_does_not_hold_is_said(kind, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_detector(kind, same, changed)
