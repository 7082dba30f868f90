"""Tests with ``peer`` run for every folder of another library, tests with ``variant`` for every variant."""

import pytest
from hydrophoned.learn.sae import VARIANTS
from peer_folders import DATA, PEERS, rows_of, trained_on


def pytest_generate_tests(metafunc):
    if "peer" in metafunc.fixturenames:
        metafunc.parametrize("peer", PEERS, ids=[str(path.relative_to(DATA)) for path in PEERS])
    if "variant" in metafunc.fixturenames:
        metafunc.parametrize("variant", VARIANTS)


@pytest.fixture(scope="session")
def learned():
    """Dictionaries of normalised rows by variant, made once; with the normaliser's mean and scale."""
    rows = rows_of(6000)
    mean, scale = rows.mean(0), float((rows.shape[1] / rows.sub(rows.mean(0)).square().sum(1).mean()).sqrt())
    made = {}

    def make(variant):
        if variant not in made:
            made[variant] = trained_on((rows - mean) * scale, variant)
        return made[variant], mean, scale

    return make
