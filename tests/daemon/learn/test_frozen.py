"""A dictionary as it was when it was published."""

import numpy as np
import pytest
import torch
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.learn.frozen import FrozenEncoder
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.rows import Rows

WIDTH = 24


def rows(count, seed, time=0):
    x = np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)
    zeros = np.zeros(count, dtype=np.int32)
    return Rows(
        activation=x,
        dtype="float32",
        request=np.arange(count, dtype=np.int64) // 16,
        sequence=zeros.astype(np.uint16),
        position=zeros,
        phase=zeros.astype(np.uint8),
        token=zeros,
        time=time + np.arange(count, dtype=np.int64),
    )


@torch.no_grad()
@pytest.mark.parametrize("variant", ["topk", "batchtopk", "matryoshka", "jumprelu", "gated", "l1"])
@pytest.mark.parametrize("normalise", ["scale", "whiten"])
def test_it_encodes_as_the_dictionary_did(variant, normalise):
    config = LearnerConfig(
        features=64, k=4, variant=variant, normalise=normalise, batch_rows=128, buffer_rows=256, warmup_rows=256
    )
    learner = StreamLearner(1, WIDTH, config)
    learner.observe(rows(2048, 0))
    assert learner.dictionary_version
    frozen = FrozenEncoder(learner.trainer.dictionary, learner.trainer.normaliser, 3, torch.arange(64))
    x = torch.from_numpy(rows(100, 5).activation)
    before = learner.dictionary.encode(learner.trainer.apply(x))
    got = frozen.encode(x)
    assert torch.equal(got.value > 0, before.value > 0)
    torch.testing.assert_close(got.value, before.value, rtol=1e-3, atol=1e-3)
    learner.observe(rows(2048, 1, time=10_000))
    again = frozen.encode(x)
    assert torch.equal(again.index, got.index)
    assert torch.equal(again.value, got.value)
    assert not torch.equal(learner.dictionary.encode(learner.trainer.apply(x)).value, got.value)
    other = FrozenEncoder.of_state(frozen.state_dict(), learner.trainer.dictionary.config)
    assert (other.version, other.features) == (3, 64)
    assert torch.equal(other.ids, torch.arange(64))
    assert torch.equal(other.encode(x).value, got.value)
