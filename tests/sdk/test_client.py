"""``hydrophone.Client`` against a real daemon that has learned from a small model."""

import json
import time

import hydrophone
import numpy as np
import pytest
import torch
from hydrophone.demo.daemon import DemoDaemon
from hydrophone_schemas import rest
from torch import nn

WIDTH, TOKENS = 16, 50
STREAM = "toy@1/block"


class Model(nn.Module):
    """Embeds token ids."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.block = nn.Linear(WIDTH, WIDTH)

    def forward(self, input_ids):
        return self.block(self.embed(input_ids))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    with DemoDaemon(features=64, k=4, data_dir=tmp_path_factory.mktemp("daemon") / "data") as running:
        model, generator = Model(), torch.Generator().manual_seed(0)
        options = {"name": "toy", "version": "1", "daemon": running.address}
        with hydrophone.attach(model, sites=["block"], **options) as tap, torch.inference_mode():
            for number in range(240):
                odd = number % 2
                with tap.request(id=f"r/{number}", kind="odd" if odd else "even"):
                    model(torch.randint(25 * odd, 25 * odd + 25, (1, 32), generator=generator))
                tap.outcome(f"r/{number}", odd=bool(odd))
            assert tap.flush(60)
        yield running


@pytest.fixture
def client(daemon):
    return hydrophone.Client(daemon.url)


def read(model, document):
    """A document that the API's model takes."""
    return model.model_validate_json(json.dumps(document))


def test_streams_and_features(client):
    assert [one["id"] for one in client.streams()["items"]] == [STREAM]
    page = client.features(STREAM, sort="max", limit=5)
    values = [one["max"] for one in page["items"]]
    assert len(values) == 5
    assert values == sorted(values, reverse=True)
    behind = client.features(STREAM, sort="max", limit=5, cursor=page["next"])
    assert not {one["index"] for one in behind["items"]} & {one["index"] for one in page["items"]}
    index = page["items"][0]["index"]
    detail = read(rest.FeatureDetail, client.feature(STREAM, index))
    assert (detail.feature.index, detail.feature.max) == (index, values[0])
    assert len(client.examples(STREAM, index, limit=3)["items"]) == 3
    near = client.neighbours(STREAM, index, by="correlation", limit=4)["items"]
    assert index not in {one["index"] for one in near}
    assert len(near) <= 4
    assert "items" in client.partners(STREAM, index, by="count")
    fired = read(rest.FiringList, client.firings(STREAM, index, by="random", limit=5))
    assert len(fired.items) == min(5, fired.fired) > 0
    assert [one["version"] for one in client.versions(STREAM)["items"]][-1] == 1


def test_rows_are_encoded_and_decoded(client):
    x = Model()(torch.tensor([7, 8])).detach()
    codes = client.encode(STREAM, x)["items"]
    given = [{name: code[name] for name in ("index", "value")} for code in codes]
    rebuilt = np.array([item["row"] for item in client.decode(STREAM, given)["items"]])
    assert rebuilt.shape == x.shape
    assert np.square(rebuilt - x.numpy()).sum() < 0.5 * np.square(x.numpy()).sum()


def test_rows_of_a_token_find_its_features(client):
    found = client.search(STREAM, token=7, limit=3)
    assert read(rest.FeatureSearch, found).items
    with torch.no_grad():
        x = Model()(torch.tensor([7]))
    for rows in (x, x.numpy(), x.tolist()):
        assert client.search(STREAM, rows=rows)["items"][0]["index"] == found["items"][0]["index"]
        assert found["items"][0]["index"] in {one["index"] for one in client.inspect(STREAM, rows=rows)["items"]}
    inspected = read(rest.Inspection, client.inspect(STREAM, request="r/239", limit=5))
    assert inspected.request == "r/239"
    assert inspected.rows > 0


def test_two_kinds_of_requests_are_told_apart(client):
    kinds = {"attributes": {"kind": "odd"}}, {"attributes": {"kind": "even"}}
    told = client.contrast(STREAM, *kinds, max_q=0.05, limit=5)
    assert read(rest.Contrast, told).items
    assert client.contrast(STREAM, kinds[0], max_q=0.05, limit=5)["items"]  # against all others
    probes = client.probe(STREAM, "odd", outcomes={"odd": True}, sizes=[1, 4])
    assert {one.name for one in read(rest.ProbeList, probes).items} == {"odd"}
    best = client.rerank(STREAM, probe="odd", requests=["r/100", "r/101"])["items"]
    assert [one["request"] for one in best] == ["r/101", "r/100"]


def test_a_label_is_given_and_listed(client):
    given = client.set_label(STREAM, 3, "a label", author="ada")
    assert read(rest.FeatureLabel, given).source == "manual"
    listed = client.labels(STREAM, index=3)["items"]
    assert [(one["text"], one["author"]) for one in listed] == [("a label", "ada")]
    assert client.search(STREAM, label="A LABEL")["items"][0]["index"] == 3
    client.set_label(STREAM, 3, "another")
    assert client.feature(STREAM, 3)["feature"]["label"] == "another"


def test_stability_is_found_and_read(client):
    assert client.stability(STREAM)["state"] == "none"
    assert client.find_stability(STREAM, passes=5, seed=3)["state"] == "running"
    until = time.monotonic() + 60
    while (told := client.stability(STREAM, limit=64))["state"] == "running":
        assert time.monotonic() < until
        time.sleep(0.05)
    page = read(rest.StabilityList, told)
    assert (page.state, page.problem, page.passes, page.seed) == ("done", None, 5, 3)
    assert len(page.items) == 64
    listed = client.features(STREAM, sort="stability", limit=64)["items"]
    assert [one["index"] for one in listed] == [one.index for one in page.items]


def test_the_watch_over_a_stream_is_read_and_given_another_reference(client):
    told = read(rest.DriftStatus, client.drift(STREAM))
    assert (told.state, told.drifts) == (rest.DriftState.COLLECTING, 0)
    (stratum,) = told.strata
    assert 0 < stratum.collected <= 240
    assert client.references(STREAM)["items"] == client.detections(stream=STREAM, limit=3)["items"] == []
    assert read(rest.NoveltyList, client.novelty(STREAM)).items == []
    with pytest.raises(hydrophone.RequestRefused, match="has no drift 1"):
        client.detection(STREAM, 1)
    with pytest.raises(hydrophone.RequestRefused, match="409"):
        client.rebaseline(STREAM, "recent")  # none is held before there is a reference
    assert client.rebaseline(STREAM, name="later")["state"] == "collecting"


def test_what_is_refused_says_why(client):
    with pytest.raises(hydrophone.RequestRefused, match="did you mean 'limit'"):
        client.features(STREAM, limt=5)
    with pytest.raises(hydrophone.RequestRefused, match="there is no stream"):
        client.search("toy@2/block", token=1)
    with pytest.raises(hydrophone.RequestRefused, match="give exactly one of label, token"):
        client.search(STREAM)
    with pytest.raises(hydrophone.RequestRefused, match="there is no feature 64"):
        client.set_label(STREAM, 64, "x")
    with pytest.raises(hydrophone.DaemonUnreachable, match="no daemon answers"):
        hydrophone.Client("127.0.0.1:1").streams()
    with pytest.raises(hydrophone.InvalidOption):
        hydrophone.Client("ftp://x")


def test_the_address_comes_from_the_environment(daemon, monkeypatch):
    monkeypatch.setenv("HYDROPHONE_URL", daemon.url)
    assert hydrophone.Client().url == daemon.url
    monkeypatch.delenv("HYDROPHONE_URL")
    assert hydrophone.Client(timeout=1.0).url == "http://127.0.0.1:8417"


def test_numpy_numbers_in_a_body_are_plain_numbers(client):
    assert client.search(STREAM, token=np.int64(7))["items"]
