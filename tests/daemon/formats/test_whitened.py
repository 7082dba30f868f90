"""Whitened dictionaries out of here: the same codes and reconstructions on raw rows."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from hydrophoned.formats import detect, hydrophone
from hydrophoned.formats.errors import NotCarried
from hydrophoned.formats.exchange import COMPETING, to_dictionary
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.learn.control import whiten_by
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.learn.offline import OfflineTrainer
from hydrophoned.rows import Rows
from hydrophoned.runtime.checkpoint import save_checkpoint
from hydrophoned.runtime.dictionaries import open_dictionary
from peer_folders import dense, rows_of

STRETCH = torch.diag(torch.logspace(-0.7, 0.7, 16))
KINDS = ("whiten", "control")


def stretched(n, seed=5):
    return rows_of(n, seed=seed) @ STRETCH


def control():
    return whiten_by([stretched(500, seed=70).numpy()], 16, sink_norm_factor=5.0).whitening


def settings(kind, variant):
    return LearnerConfig(
        features=64, k=4, batch_rows=128, warmup_rows=256, normaliser_rows=512, normalise=kind, variant=variant
    )


def trained(kind, variant="topk"):
    given = control() if kind == "control" else None
    one = OfflineTrainer(16, settings(kind, variant), control=given)
    list(one.train([(0.0, part.numpy()) for part in stretched(6000).split(500)]))
    return one


def live(dictionary, normaliser, rows):
    """Codes [n, F] and reconstructions [n, d] in the rows' own scale, products in float32."""
    codes = dictionary.encode(normaliser.apply(rows), exact=True)
    full = torch.zeros(len(rows), dictionary.features).scatter_add_(1, codes.index.long(), codes.value)
    return full, normaliser.invert(dictionary.decode(codes))


def assert_same(found, expected, *, values=True):
    """The same latents, values and reconstructions; near ties may fall the other way, in one row of a hundred at most.

    Where decoder rows were given norm 1 the values took that over: one factor for each latent. Of rows with more active
    latents than a code holds it is then other ones that are left out: those are not compared.
    """
    if not values:
        room = (expected[0] > 0).sum(1) < 8
        assert room.sum() > 40
        found, expected = [one[room] for one in found], [one[room] for one in expected]
    same = ((found[0] > 0) == (expected[0] > 0)).all(1)
    assert same.float().mean() >= 0.99
    assert (expected[0] > 0).sum(1).float().mean() > 1
    found, expected = [one[same] for one in found], [one[same] for one in expected]
    factor = 1.0 if values else found[0].sum(0) / expected[0].sum(0).clamp_min(1e-9)
    torch.testing.assert_close(found[0], expected[0] * factor, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(found[1], expected[1], atol=5e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_codes_of_raw_rows(kind, variant, tmp_path):
    one = trained(kind, variant)
    affine = one.normaliser.affine()._asdict()
    hydrophone.save_normalised(one.dictionary, tmp_path / "own", **affine, metadata={"notes": "x"})
    exchange = detect.load(tmp_path / "own")
    rows = stretched(300, seed=9)
    expected = live(one.dictionary, one.normaliser, rows)
    competing = variant in COMPETING
    assert_same(dense(to_dictionary(exchange), rows), expected, values=competing)
    carried = set()
    for name in ("saelens", "sparsify", "dictionary_learning"):
        try:
            detect.FORMATS[name].save(exchange, tmp_path / name)
        except NotCarried:
            continue
        carried.add(name)
        assert_same(dense(to_dictionary(detect.load(tmp_path / name)), rows), expected, values=competing)
    assert carried >= {"saelens", "dictionary_learning"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changed", [False, True])
def test_a_streams_checkpoint_is_opened_with_its_whitening_folded_in(kind, changed, tmp_path):
    config = settings(kind, "topk")
    learner = StreamLearner(1, 16, config, control=control() if kind == "control" else None)
    x = stretched(4000)
    if changed:  # mean and scale of whitened rows are replaced on the way
        x[2000:] = x[2000:] * 3 + 2
    n = len(x)
    narrow = np.zeros(n, np.int32)
    time = np.arange(n, dtype=np.int64) + 1_700_000_000_000_000
    request = np.arange(n, dtype=np.int64)
    learner.observe(
        Rows(x.numpy(), "float32", request, narrow.astype(np.uint16), narrow, narrow.astype(np.uint8), narrow, time)
    )
    learner.flush()
    assert (learner.status()["transforms"] > 0) == changed
    about = {"stream": "m@1/layers.3", "fingerprint": "f", "width": 16, "learner": asdict(config)}
    save_checkpoint(tmp_path / "stream", learner.state_dict(), about)
    exchange = open_dictionary(tmp_path / "stream")
    rows = x[-300:]
    assert_same(dense(to_dictionary(exchange), rows), live(learner.dictionary, learner.normaliser, rows))
