"""Contrast and sparse probes on features of a language model, learned from prose and code."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hydrophoned.analyse.contrast import contrast
from hydrophoned.analyse.sparse_probe import sparse_probes
from hydrophoned.analyse.traffic import Measure, Traffic
from hydrophoned.learn.code_sample import CodedRows
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.learn.offline import OfflineTrainer
from traffic_made import half

pytestmark = [pytest.mark.llm, pytest.mark.timeout(600)]
LAYER, LENGTH, DOCUMENTS, F = 5, 128, 96, 512
PLANTED = F


class Documents(NamedTuple):
    """One stretch of each document: its features, the planted one last, and whether it is code."""

    traffic: Traffic
    is_code: np.ndarray[Any, Any]
    tokens: np.ndarray[Any, Any]
    codes: CodedRows


@pytest.fixture(scope="module")
def documents():
    """Half prose, half code. The planted feature fires on 15% of the rows of code and on 3% of prose."""
    from hydrophone.demo.corpus import builtin_documents
    from hydrophone.demo.model import load_model

    loaded = load_model(None)
    body = loaded.model.model
    body.layers = body.layers[: LAYER + 1]
    kinds = {kind: [d for d in builtin_documents() if d.kind == kind] for kind in ("prose", "code")}
    chosen = [d for pair in zip(kinds["prose"], kinds["code"], strict=False) for d in pair]
    read = ((d, loaded.tokenizer(d.text, add_special_tokens=False, verbose=False)["input_ids"]) for d in chosen)
    whole = [(d, ids[:LENGTH]) for d, ids in read if len(ids) >= LENGTH][:DOCUMENTS]
    caught = []
    handle = body.layers[LAYER].register_forward_hook(
        lambda _module, _inputs, output: caught.append(
            (output[0] if isinstance(output, tuple) else output).flatten(0, 1)
        )
    )
    with torch.inference_mode():
        for start in range(0, len(whole), 16):
            body(torch.tensor([ids for _, ids in whole[start : start + 16]]), use_cache=False)
    handle.remove()
    x = torch.cat(caught).float().numpy()
    request = np.repeat(np.arange(len(whole)), LENGTH)
    trainer = OfflineTrainer(x.shape[1], LearnerConfig(features=F, k=16, warmup_rows=1024))
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(len(x)) for _ in range(3)])
    for _ in trainer.train((at / 1000, x[np.sort(order[at : at + 1024])]) for at in range(0, len(order), 1024)):
        pass
    norms = np.linalg.norm(x, axis=1)
    kept = norms <= trainer.sinks.factor * trainer.sinks.median
    found = trainer.dictionary.encode(trainer.normaliser.apply(torch.from_numpy(x[kept])))
    is_code = np.array([d.kind == "code" for d, _ in whole])
    own = request[kept]
    fires = rng.random(len(own)) < np.where(is_code[own], 0.15, 0.03)
    index = np.concatenate((found.index.numpy(), np.full((len(own), 1), PLANTED, dtype=np.int32)), axis=1)
    value = np.concatenate((found.value.numpy(), fires[:, None].astype(np.float32)), axis=1)
    nothing = np.zeros(len(own), dtype=np.int32)
    tokens = np.concatenate([ids for _, ids in whole])[kept].astype(np.int32)
    codes = CodedRows(index, value, own, nothing, nothing, nothing, tokens, own)
    traffic, _ = Traffic.of_codes(codes, F + 1)
    return Documents(traffic, is_code, tokens, codes)


def test_the_planted_and_the_code_like_features_come_first(documents):
    found = contrast(documents.traffic, documents.is_code)
    assert found.feature.tolist().index(PLANTED) < 10
    first = found.feature[:20]
    assert (found.q[:20] < 1e-4).all()
    # on every other document of each kind, and on those left out, the same features differ in the same direction
    half_of = np.arange(documents.traffic.requests) // 2 % 2 == 0
    one, other = (contrast(documents.traffic.take(part), documents.is_code[part]) for part in (half_of, ~half_of))
    signs = [dict(zip(part.feature.tolist(), np.sign(part.effect), strict=True)) for part in (one, other)]
    assert all(signs[0][f] == signs[1].get(f) for f in one.feature[:20].tolist())
    assert len(set(first) & set(one.feature[:40])) > 10


def test_halves_of_the_same_documents_rarely_differ(documents):
    rng = np.random.default_rng(0)
    count = documents.traffic.requests
    found = [bool((contrast(documents.traffic, half(count, rng)).q < 0.05).any()) for _ in range(200)]
    assert np.mean(found) <= 0.05


def test_few_features_tell_code_from_prose_and_nothing_tells_permuted_labels(documents):
    columns, units = documents.traffic.columns(Measure.MEAN), np.arange(documents.traffic.requests)
    one, *_, many = sparse_probes(columns, documents.is_code, units, sizes=(1, 8))
    assert one.held.auroc > 0.85
    assert many.held.auroc > 0.9
    rng = np.random.default_rng(1)
    permuted = [
        sparse_probes(columns, rng.permutation(documents.is_code), units, sizes=(8,), seed=seed)[0].held.auroc
        for seed in range(30)
    ]
    error = np.std(permuted) / np.sqrt(30)
    assert abs(np.mean(permuted) - 0.5) < 3 * error
