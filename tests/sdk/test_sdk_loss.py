"""Loss recovered, of the dictionaries that a real daemon learned: of a toy, and of the demo's language model."""

import itertools
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import hydrophone
import numpy as np
import pytest
import torch
from hydrophone.demo.corpus import builtin_documents, chunks
from hydrophone.demo.daemon import DemoDaemon
from hydrophone.demo.model import LoadedModel, load_model
from hydrophone.loss import Rebuilt, _Dictionary, _recovered
from hydrophone.replay import measure
from hydrophone.rest_client import RestClient
from torch import nn

WIDTH, STREAM, SITE = 32, "toy@1/0", "model.layers.1"
D = 576


def feed(daemon: DemoDaemon, rows: torch.Tensor, name: str = "toy") -> None:
    """Give rows [n, d] to the stream ``name@1/0``."""
    source = nn.Sequential(nn.Identity())
    with hydrophone.attach(source, "0", name=name, version="1", daemon=daemon.address) as tap, torch.inference_mode():
        for part in rows.split(500):
            source(part)
        assert tap.flush(60)
        assert not tap.status().dropped


def tokens(batch: int, length: int, seed: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(2, 64, (batch, length), generator=torch.Generator().manual_seed(seed))}


def rows_of(llama: nn.Module, seed: int) -> torch.Tensor:
    """What the site gives for a few thousand random tokens."""
    with torch.no_grad():
        return llama(**tokens(60, 50, seed), output_hidden_states=True).hidden_states[2].reshape(-1, WIDTH)


@pytest.fixture(scope="module")
def daemon() -> Iterator[DemoDaemon]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYDROPHONE_LEARN__NORMALISER_ROWS", "512")
        patch.setenv("HYDROPHONE_LEARN__PATIENCE_SECONDS", "3600")  # nothing is learned while nothing arrives
        with DemoDaemon(features=256, k=8) as running:
            yield running


@pytest.fixture(scope="module")
def toy(daemon: DemoDaemon, llama: nn.Module) -> DemoDaemon:
    feed(daemon, rows_of(llama, 0))
    return daemon


BATCHES = [tokens(3, 20, 1), tokens(2, 30, 2)]


def test_what_is_measured_is_the_daemons_dictionary(toy: DemoDaemon, llama: nn.Module) -> None:
    found = hydrophone.loss_recovered(llama, iter(BATCHES), stream=STREAM, site=SITE, url=toy.url)
    assert (found.stream, found.site, found.dictionary_version) == (STREAM, SITE, 1)
    assert (found.rows, found.rows_sink, found.rows_quarantined) == (3 * 20 + 2 * 30, 0, 0)
    assert (found.tokens, found.sequences) == (3 * 19 + 2 * 29, 5)

    def by_json(x: np.ndarray) -> Rebuilt:
        items = RestClient(toy.url).post(f"/v1/streams/{STREAM}/reconstruct", {"rows": x.tolist()})["items"]
        return Rebuilt(*(np.array([item[name] for item in items]) for name in Rebuilt._fields))

    same = measure(llama, BATCHES, SITE, lambda x: by_json(x)._replace(row=by_json(x).row.astype(np.float32)))
    assert found.ce_clean == same.clean.mean
    assert found.ce_dictionary == pytest.approx(same.rebuilt.mean, abs=1e-6)
    assert (found.ce_mean, found.ce_zero) == (same.by_mean.mean, same.by_zero.mean)
    assert found.loss_recovered == _recovered(found.ce_mean, found.ce_dictionary, found.ce_clean)
    assert found.loss_recovered_zero == _recovered(found.ce_zero, found.ce_dictionary, found.ce_clean)


def test_rows_go_out_in_calls_that_the_daemon_takes(
    toy: DemoDaemon, llama: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = rows_of(llama, 3).numpy()
    whole = _Dictionary(RestClient(toy.url), STREAM).rebuild(x)
    assert whole.row.shape == x.shape
    assert np.square(whole.row - x).sum() < 0.5 * np.square(x - x.mean(0)).sum()
    monkeypatch.setattr("hydrophone.loss._MOST_BYTES", 1000 * 4 * WIDTH)
    parts = _Dictionary(RestClient(toy.url), STREAM).rebuild(x)
    np.testing.assert_allclose(parts.row, whole.row, atol=1e-5)
    np.testing.assert_array_equal(parts.sink, whole.sink)
    none = _Dictionary(RestClient(toy.url), STREAM)
    assert none.rebuild(x[:0]).row.shape == (0, WIDTH)
    assert none.version is None


def test_sinks_of_the_stream_stay_as_they_are(toy: DemoDaemon, llama: nn.Module) -> None:
    model = nn.Sequential(nn.Identity(), nn.Linear(WIDTH, 1))
    x = rows_of(llama, 0)[:50].clone()
    x[7] *= 1000
    x[9, 3] = torch.nan
    given = []

    def loss(output: torch.Tensor, _batch: Any) -> tuple[float, int]:
        given.append(output)
        return float(output[0]), 1

    found = hydrophone.loss_recovered(model, [{"input": x}], stream=STREAM, url=toy.url, loss=loss)
    assert (found.rows, found.rows_sink, found.rows_quarantined, found.sequences) == (48, 1, 1, 50)
    for output in given[1:]:
        assert torch.equal(output[7], given[0][7])
        assert not torch.equal(output[8], given[0][8])


def test_a_dictionary_that_changes_meanwhile_is_refused(daemon: DemoDaemon, llama: nn.Module) -> None:
    feed(daemon, rows_of(llama, 0), "moving")
    grown = 3 * rows_of(llama, 1)  # not so far that they count as sinks

    losses, hooks = itertools.count(1), dict(llama.model.layers[1]._forward_hooks)

    def loss(_output: Any, _batch: Any) -> tuple[float, int]:
        if next(losses) == 2:  # the first batch has been rebuilt
            live = threading.Thread(target=feed, args=(daemon, grown, "moving"))
            live.start()
            live.join()
        return 0.0, 1

    with pytest.raises(hydrophone.DictionaryChanged, match="from version 1 to 2"):
        hydrophone.loss_recovered(llama, BATCHES, stream="moving@1/0", site=SITE, url=daemon.url, loss=loss)
    assert dict(llama.model.layers[1]._forward_hooks) == hooks


def test_what_the_daemon_refuses_is_said(toy: DemoDaemon, llama: nn.Module) -> None:
    options = {"site": SITE, "url": toy.url}
    with pytest.raises(hydrophone.RequestRefused, match="404: there is no stream 'tow@1/0'"):
        hydrophone.loss_recovered(llama, BATCHES, stream="tow@1/0", **options)
    wide, batch = nn.Sequential(nn.Identity()), {"input": torch.randn(2, 64)}
    with pytest.raises(hydrophone.RequestRefused, match="rows of 64 values; rows of this stream have 32"):
        hydrophone.loss_recovered(wide, [batch], stream=STREAM, url=toy.url, loss=lambda _output, _batch: (1, 1))
    feed(toy, torch.randn(20, WIDTH), "new")
    with pytest.raises(hydrophone.RequestRefused, match="409: new@1/0 has no dictionary yet"):
        hydrophone.loss_recovered(llama, BATCHES, stream="new@1/0", **options)
    with pytest.raises(hydrophone.InvalidOption, match="stream='toy'"):
        hydrophone.loss_recovered(llama, BATCHES, stream="toy", **options)


def test_without_a_daemon_or_with_something_else_there(llama: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setenv("HYDROPHONE_URL", f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with pytest.raises(hydrophone.DaemonUnreachable, match="sends no rebuilt rows"):
            hydrophone.loss_recovered(llama, BATCHES, stream=STREAM, site=SITE)
        server.shutdown()
        thread.join()
    with pytest.raises(hydrophone.DaemonUnreachable, match="no daemon answers"):
        hydrophone.loss_recovered(llama, BATCHES, stream=STREAM, site=SITE)


@pytest.mark.parametrize(
    ("ablated", "rebuilt", "clean", "expected"),
    [
        (8.0, 3.0, 3.0, 1.0),
        (8.0, 8.0, 3.0, 0.0),
        (8.0, 4.0, 3.0, 0.8),
        (8.0, 9.0, 3.0, -0.2),
        (3.0, 3.0, 3.0, None),
        (2.0, 3.0, 3.0, None),
        (float("nan"), 3.0, 3.0, None),
        (8.0, float("nan"), 3.0, None),
        (float("inf"), 4.0, 3.0, None),
    ],
)
def test_the_share_is_known_only_where_there_is_something_to_recover(
    ablated: float, rebuilt: float, clean: float, expected: float | None
) -> None:
    found = _recovered(ablated, rebuilt, clean)
    assert found == (None if expected is None else pytest.approx(expected))


# -- the language model --------------------------------------------------------------------------------------------

LAYER, LENGTH = 5, 128
"""An early block: rows of it cost a sixth of a whole pass."""


def learn(daemon: DemoDaemon, loaded: LoadedModel, rows: int) -> str:
    """Stream the block's rows of real text; the id of the stream."""
    text = chunks(builtin_documents(), loaded.tokenizer, LENGTH, seed=0)
    body, layers = loaded.model.model, loaded.model.model.layers
    body.layers = layers[: LAYER + 1]
    try:
        with (
            hydrophone.attach(body, f"layers.{LAYER}", name="smollm2", version="1", daemon=daemon.address) as tap,
            torch.inference_mode(),
        ):
            while tap.status().streams[0]["captured"] < rows:
                body(torch.tensor([next(text).token_ids]), use_cache=False)
            assert tap.flush(120)
            return tap.streams[0]
    finally:
        body.layers = layers


def random_directions(x: np.ndarray) -> Rebuilt:
    """A dictionary that knows nothing: 1536 random directions, the 32 best of each row, at the best single scale."""
    norms = np.linalg.norm(x, axis=1)
    sink = norms > 5 * np.median(norms)
    W = np.random.default_rng(0).normal(size=(1536, D)).astype(np.float32)
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    mean = x[~sink].mean(0)
    p = (x - mean) @ W.T
    rebuilt = np.where(p >= np.partition(p, -32, axis=1)[:, -32:-31], p.clip(0), 0) @ W
    scale = ((x - mean)[~sink] * rebuilt[~sink]).sum() / np.square(rebuilt[~sink]).sum()
    return Rebuilt(np.where(sink[:, None], x, mean + scale * rebuilt), sink, np.ones(len(x), np.bool_))


@pytest.mark.llm
@pytest.mark.timeout(600)
def test_a_learned_dictionary_keeps_most_of_a_language_models_loss_and_a_random_one_does_not() -> None:
    loaded = load_model(None)
    held_out = chunks(builtin_documents(), loaded.tokenizer, LENGTH, seed=1)
    texts = [chunk.token_ids for chunk in itertools.islice(held_out, 12) if len(chunk.token_ids) == LENGTH][:4]
    batches = [{"input_ids": torch.tensor(texts[at : at + 2])} for at in (0, 2)]
    site = f"model.layers.{LAYER}"
    with DemoDaemon(features=1536, k=32) as daemon:
        stream = learn(daemon, loaded, 6000)
        found = hydrophone.loss_recovered(loaded.model, batches, stream=stream, site=site, url=daemon.url)
    assert (found.tokens, found.sequences, found.dictionary_version) == (4 * (LENGTH - 1), 4, 1)
    assert found.rows + found.rows_sink == 4 * LENGTH
    assert found.rows_sink >= 4, "the first position of each text is a sink"
    assert found.ce_clean < found.ce_dictionary < found.ce_mean < found.ce_zero
    assert found.loss_recovered is not None
    assert found.loss_recovered_zero is not None
    assert found.loss_recovered > 0.7
    assert found.loss_recovered_zero > found.loss_recovered, "0 is the easier comparison"
    random = measure(loaded.model, batches[:1], site, random_directions)
    at_random = _recovered(random.by_mean.mean, random.rebuilt.mean, random.clean.mean)
    assert at_random is not None
    assert at_random < found.loss_recovered - 0.3
