import itertools
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
import torch
from hydrophone_schemas import tables
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.learn.errors import CheckpointError, InvalidConfig, NoDictionary
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.learn.sae import files
from hydrophoned.rows import Rows
from safetensors import safe_open
from test_learner import CONFIG, T0, assert_same_state, make_rows

F, D = 64, 16
OFTEN = replace(CONFIG, publish_rows=512, publish_moved=0.05, probe_rows=80)
ASKED = replace(CONFIG, publish_moved=0.0, probe_rows=80)


def learner(config=OFTEN, rows=None):
    one = StreamLearner(7, D, config)
    if rows is not None:
        one.observe(make_rows(rows))
    return one


def taken(one):
    """Tables of the versions published since the last call, by name, each version's apart."""
    told = one.take_published()
    for version in told:
        for name, batch in version.items():
            assert batch.schema.equals(tables.TABLES[name]), name
            batch.validate(full=True)
            for field in batch.schema:
                assert field.nullable or not batch.column(field.name).null_count, field
    return [{name: batch.to_pylist() for name, batch in version.items()} for version in told]


def numbers(told):
    return [version["dictionary"][0]["version"] for version in told]


def where(told):
    """Index by id after all that was told of features."""
    held = {}
    for version in told:
        for row in version["feature"]:
            if row["state"] == "lost":
                assert held.pop(row["feature_id"]) == row["feature"]
            else:
                assert (row["state"] == "born") == (row["feature_id"] not in held)
                held[row["feature_id"]] = row["feature"]
    return held


def ids(one):
    return {int(feature_id): index for index, feature_id in enumerate(one.identity.ids)}


# -- when ----------------------------------------------------------------------------------------------------------


def test_the_first_dictionary_is_the_first_version_and_all_its_features_are_new():
    one = learner(ASKED, 100)
    assert one.dictionary_version == 0
    assert not one.take_published()
    with pytest.raises(NoDictionary, match="64 rows"):
        one.publish(T0)
    one.observe(make_rows(100))
    (first,) = taken(one)
    (row,) = first["dictionary"]
    assert (row["version"], row["reason"], row["parent"], row["digest"]) == (1, "first", None, None)
    assert (row["features"], row["k"], row["variant"], row["probe"]) == (F, 4, "topk", 1)
    assert row["probe_rows"] == 80
    assert 0 < row["fvu"] < 1.5
    assert row["decoder_moved"] is row["codes_moved"] is None
    assert [(f["feature"], f["feature_id"], f["state"]) for f in first["feature"]] == [
        (index, index + 1, "born") for index in range(F)
    ]
    assert "feature_match" not in first


def test_what_has_moved_enough_is_published_and_what_has_not_is_not():
    steady = replace(OFTEN, dead_after_rows=10**9)  # nothing is set anew
    moved = taken(learner(steady, 11_000))
    reasons = [version["dictionary"][0]["reason"] for version in moved]
    assert reasons[0] == "first"
    assert set(reasons[1:]) == {"moved"}
    assert len(moved) > 2
    for before, after in itertools.pairwise(moved):
        row = after["dictionary"][0]
        assert row["parent"] == before["dictionary"][0]["version"]
        assert row["codes_moved"] >= 0.05 or row["decoder_moved"] >= 0.0125
        assert row["rows_learned"] - before["dictionary"][0]["rows_learned"] >= 512
    assert len(taken(learner(replace(steady, publish_moved=1.0), 9500))) == 1
    assert len(taken(learner(replace(steady, publish_moved=0.0), 9500))) == 1


def test_features_that_were_set_anew_do_not_wait_for_long():
    told = taken(learner(replace(OFTEN, publish_moved=1.0), 12_000))
    assert len(told) > 2
    for version in told[1:]:
        assert {row["state"] for row in version["feature"]} == {"born", "lost"}


def test_a_young_dictionary_is_looked_at_more_often():
    quick = replace(OFTEN, publish_rows=10**9, batch_rows=512, buffer_rows=1024)
    versions = taken(learner(quick, 35_000))
    learned = [version["dictionary"][0]["rows_learned"] for version in versions]
    assert learned[1] == pytest.approx(8192, abs=512)
    assert learned[2] == pytest.approx(2 * learned[1], abs=512)
    assert len(learned) == 4
    assert learned[3] == pytest.approx(4 * learned[1], abs=512)


def test_a_transform_of_the_normaliser_is_a_version_in_which_nothing_else_changes():
    one = learner(replace(ASKED, learn_rows_per_second=1e-6), 2000)  # nothing is learned, so that nothing moves
    before = one.identity.ids.clone()
    rows = make_rows(4000, seed=1, start=T0 + 10_000_000)
    one.observe(rows._replace(activation=rows.activation * 3 + 1))
    told = taken(one)
    assert [version["dictionary"][0]["reason"] for version in told][:2] == ["first", "transform"]
    row = told[1]["dictionary"][0]
    assert row["parent"] == 1
    assert row["decoder_moved"] == pytest.approx(0, abs=1e-6)
    assert row["codes_moved"] < 0.01
    assert {match["kind"] for match in told[1]["feature_match"]} == {"stable"}
    assert not told[1]["feature"]
    assert torch.equal(before, one.identity.ids)


def test_one_that_is_asked_for_ends_the_window_so_that_each_is_of_one_version():
    one = learner(ASKED, 2000)
    published = one.publish(T0 + 5)
    assert published.version == one.dictionary_version == 2
    one.observe(make_rows(1000, seed=2, start=T0 + 2_000_000))
    one.flush()
    told = taken(one)
    assert numbers(told) == [1, 2]
    assert told[1]["dictionary"][0]["reason"] == "requested"
    assert told[1]["dictionary"][0]["published"].replace(tzinfo=UTC) == datetime.fromtimestamp((T0 + 5) / 1e6, UTC)
    windows = [window["stream_window"].to_pylist()[0] for window in one.take_closed()]
    assert [window["dictionary_version"] for window in windows] == [1, 2]
    assert windows[0]["window_end"] <= windows[1]["window_start"]


def test_settings_out_of_range_are_refused():
    with pytest.raises(InvalidConfig, match=r"publish_moved = 1\.5"):
        LearnerConfig(publish_moved=1.5)
    with pytest.raises(InvalidConfig, match="publish_rows = 0"):
        LearnerConfig(publish_rows=0)


# -- what became of features ---------------------------------------------------------------------------------------


def test_what_is_told_of_features_is_where_they_are():
    one = learner(OFTEN, 11_000)
    told = taken(one)
    assert where(told) == ids(one)
    for version in told[1:]:
        kept = {match["to_id"] for match in version["feature_match"] if match["from_id"] == match["to_id"]}
        begun = {row["feature_id"] for row in version["feature"] if row["state"] == "born"}
        assert not kept & begun
        assert {match["from_feature"] for match in version["feature_match"]} - {None} == set(range(F))
        assert {match["to_feature"] for match in version["feature_match"]} - {None} == set(range(F))


def test_a_revived_latent_is_a_new_feature_and_no_id_comes_twice():
    one = learner(replace(ASKED, dead_after_rows=400), 3000)
    one.publish(T0)
    taken(one)
    given_out = set(one.identity.ids.tolist())
    dictionary = one.dictionary
    for round_ in range(3):
        dictionary.b_enc[:6] = -20.0  # they never fire again
        before, revivals = one.identity.ids.clone(), dictionary.revivals.clone()
        one.observe(make_rows(4000, seed=3 + round_, start=T0 + (round_ + 1) * 10_000_000))
        revived = dictionary.revivals > revivals
        assert revived[:6].sum() >= 3
        one.publish(T0)
        new = one.identity.ids[revived]
        assert not set(new.tolist()) & given_out
        assert (one.identity.born[revived] == one.dictionary_version).all()
        told = taken(one)[-1]
        states = {row["feature_id"]: row["state"] for row in told["feature"]}
        assert {states[feature_id] for feature_id in new.tolist()} == {"born"}
        assert {states[feature_id] for feature_id in before[revived].tolist()} == {"lost"}
        given_out |= set(one.identity.ids.tolist())


def test_what_is_kept_of_a_feature_goes_with_it():
    one = learner(replace(ASKED, dead_after_rows=400), 3000)
    one.publish(T0)
    one.dictionary.b_enc[:6] = -20.0
    revivals = one.dictionary.revivals.clone()
    one.observe(make_rows(2500, seed=3, start=T0 + 10_000_000))
    revived = (one.dictionary.revivals > revivals).nonzero().squeeze(1)
    assert len(revived)
    held = (one.examples.score > -np.inf).any(1)
    codes = one.sample.rows()
    one.publish(T0)
    assert not (one.examples.score[one.identity.born == one.dictionary_version] > -np.inf).any()
    still = one.identity.born < one.dictionary_version
    assert torch.equal((one.examples.score > -np.inf).any(1)[still], held[still])
    after = one.sample.rows()
    begun = np.isin(codes.index, (~still).nonzero().squeeze(1).numpy())
    assert (after.value[begun] == 0).all()
    assert (after.value[~begun] == codes.value[~begun]).all()


def test_the_probe_rows_stay_until_the_stream_has_doubled():
    one = learner(ASKED, 200)
    kept = []
    for round_ in range(8):
        one.observe(make_rows(256, seed=round_, start=T0 + (round_ + 1) * 1_000_000))
        one.publish(T0)
        kept.append(one.publication._probe_rows.clone())
    probes = [version["dictionary"][0]["probe"] for version in taken(one)]
    assert probes == sorted(probes)
    assert probes[0] == 1
    assert 3 <= probes[-1] <= 6
    changed = [not torch.equal(a, b) for a, b in itertools.pairwise(kept)]
    # a version is compared on the sample before it is drawn anew, and says which that was
    assert [a != b for a, b in itertools.pairwise(probes[2:])] == changed[:-1]


def test_without_a_reservoir_directions_alone_are_compared():
    one = learner(replace(ASKED, reservoir_rows=0), 3000)
    one.publish(T0)
    told = taken(one)
    assert where(told) == ids(one)
    row, matches = told[-1]["dictionary"][0], told[-1]["feature_match"]
    assert (row["probe_rows"], row["fvu"], row["codes_moved"]) == (0, None, None)
    assert row["decoder_moved"] > 0
    assert all(match["correlation"] is None for match in matches)
    assert any(match["cosine"] > 0.6 for match in matches if match["cosine"] is not None)


# -- state ---------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_goes_on_exactly_over_versions():
    rows = make_rows(11_000)
    whole, first, second = learner(), learner(), learner()
    whole.observe(rows.slice(0, 9000))
    whole.state_dict()  # handles staged rows, as saving does
    whole.observe(rows.slice(9000, 11_000))
    first.observe(rows.slice(0, 9000))
    second.load_state(
        {
            part: {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in values.items()}
            for part, values in first.state_dict().items()
        }
    )
    second.observe(rows.slice(9000, 11_000))
    assert_same_state(whole, second)
    told = whole.take_published(), [*first.take_published(), *second.take_published()]
    assert len(told[0]) == len(told[1]) > 3
    for one, other in zip(*told, strict=True):
        assert all(one[name].equals(other[name]) for name in one)


def test_how_rows_are_split_into_batches_does_not_matter_to_versions():
    rows = make_rows(12_000)
    whole, parts = learner(), learner()
    whole.observe(rows)
    for start in range(0, 12_000, 700):
        parts.observe(rows.slice(start, min(start + 700, 12_000)))
    assert_same_state(whole, parts)
    assert numbers(taken(whole)) == numbers(taken(parts))


def test_a_state_of_another_dictionary_is_refused():
    state = learner(OFTEN, 3000).state_dict()
    state["publication"]["_W_dec"] = state["publication"]["_W_dec"][:5]
    with pytest.raises(CheckpointError, match=r"\[5, 16\], not \[64, 16\]"):
        learner().load_state(state)


def test_one_that_resumes_behind_its_own_versions_puts_right_what_was_told():
    rows = make_rows(12_000)
    ahead = learner(OFTEN, 0)
    ahead.observe(rows.slice(0, 9000))
    state = {
        part: {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in values.items()}
        for part, values in ahead.state_dict().items()
    }
    at_checkpoint = ahead.dictionary_version
    ahead.dictionary.revivals[:9] += 1  # as if nine had been set anew
    ahead.publish(T0)
    told = taken(ahead)
    resumed = learner()
    resumed.load_state(state)
    resumed.reserve(ahead.dictionary_version, ahead.identity.next_id, ahead.identity.ids)
    resumed.observe(rows.slice(9000, 9200))
    (next_one,) = taken(resumed)[:1]
    (row,) = next_one["dictionary"]
    assert row["reason"] == "resumed"
    assert row["version"] == ahead.dictionary_version + 1
    assert row["parent"] == at_checkpoint
    held = where(told)
    for one in next_one["feature"]:
        if one["state"] == "lost":
            assert held.pop(one["feature_id"]) == one["feature"]
        else:
            held[one["feature_id"]] = one["feature"]
    assert held == ids(resumed)
    assert {one["state"] for one in next_one["feature"]} >= {"lost", "renumbered"}
    assert resumed.identity.next_id >= ahead.identity.next_id
    assert len(taken(resumed)) == 0


def test_one_that_begins_anew_goes_on_numbering():
    one = learner(OFTEN)
    one.reserve(6, 1000, torch.arange(900, 900 + F))
    one.observe(make_rows(500))
    first = taken(one)[0]
    assert first["dictionary"][0]["version"] == 7
    assert first["dictionary"][0]["parent"] is None
    assert {row["feature_id"] for row in first["feature"] if row["state"] == "lost"} == set(range(900, 900 + F))
    assert {row["feature_id"] for row in first["feature"] if row["state"] == "born"} == set(range(1000, 1000 + F))


# -- what is kept of a version -------------------------------------------------------------------------------------


def test_the_content_of_a_version_is_the_dictionary_as_it_was(tmp_path):
    one = learner(ASKED)
    kept = []
    one.on_version = kept.append
    one.observe(make_rows(3000))
    published = one.publish(T0)
    artefact = kept[-1]
    assert [version.version for version in kept] == [1, 2]
    assert artefact is published.artefact
    assert published.tables["dictionary"].to_pylist()[0]["digest"] == artefact.digest == one.quality()["digest"]
    x = make_rows(200, seed=9).activation
    codes = one.encode(x)
    folder = tmp_path / "v2"
    folder.mkdir()
    (folder / files.TENSORS).write_bytes(artefact.tensors)
    (folder / files.CONFIG).write_text(files.config_text(artefact.document))
    one.observe(make_rows(2000, seed=4, start=T0 + 10_000_000))
    saved = files.read(folder)
    y = (torch.from_numpy(x) - saved.beside["normaliser.mean"]) * float(saved.beside["normaliser.scale"])
    again = saved.dictionary.encode(y, exact=True)
    order = again.value.argsort(dim=1, descending=True)
    np.testing.assert_array_equal(again.index.gather(1, order).numpy(), codes.index)
    np.testing.assert_array_equal(again.value.gather(1, order).numpy(), codes.value)
    with safe_open(folder / files.TENSORS, framework="pt") as file:
        assert not {"m_dec", "v_dec", "m_enc", "v_enc"} & set(file.keys())  # two thirds of it all
    training = saved.about["metadata"]["training"]
    assert (training["version"], training["reason"], training["published"]) == (2, "requested", T0)
    assert training["rows_learned"] == published.tables["dictionary"].to_pylist()[0]["rows_learned"]
    assert training["next_id"] > int(saved.beside["identity.ids"].max())
    for _ in range(3):  # it can learn on
        saved.dictionary.partial_fit(torch.from_numpy(make_rows(64).activation))
    assert bool(saved.dictionary.W_dec.isfinite().all())


# -- ids through a change of the stream ----------------------------------------------------------------------------


class Atoms:
    """Rows that are sparse sums of known directions [atoms, width], each with its probability to fire."""

    def __init__(self, atoms, width, active, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.directions = torch.nn.functional.normalize(torch.randn(atoms, width, generator=self.generator), dim=1)
        falling = torch.arange(1, atoms + 1).float() ** -0.5
        self.chance = falling * (active / falling.sum())
        self.time = T0

    def shuffle(self, silent):
        """Another mix: probabilities dealt out anew, and ``silent`` atoms that fire no more."""
        self.chance = self.chance[torch.randperm(len(self.chance), generator=self.generator)]
        self.chance[silent] = 0

    def rows(self, count):
        fires = torch.rand(count, len(self.chance), generator=self.generator) < self.chance
        size = 0.5 + torch.rand(count, len(self.chance), generator=self.generator)
        x = (fires * size) @ self.directions
        x += 0.02 * torch.randn(x.shape, generator=self.generator)
        number = np.arange(count)
        time, self.time = self.time + number * 1000, self.time + count * 1000
        return Rows(
            x.numpy(), "float32", number // 8, np.zeros(count, np.uint16), (number % 8).astype(np.int32),
            np.zeros(count, np.uint8), np.full(count, -1, np.int32), time,
        )  # fmt: skip


def test_atoms_that_stay_keep_their_ids_through_twenty_versions_and_a_change():
    torch.manual_seed(0)
    stream = Atoms(192, 96, 6, seed=5)
    gone, late = torch.arange(0, 192, 12), torch.arange(6, 192, 12)
    stream.chance[late] = 0
    before = stream.chance.clone()
    one = StreamLearner(1, 96, LearnerConfig(features=384, k=6, batch_rows=256, publish_moved=0.0))
    for _ in range(16):
        one.observe(stream.rows(4096))
        one.take_closed()
    one.publish(stream.time)
    cosine, index = (stream.directions @ one.dictionary.W_dec.T).max(1)
    first = one.identity.ids[index].clone()
    found = cosine > 0.9
    stream.shuffle(gone)
    active = (found & (before > 0) & (stream.chance > 0)).nonzero().squeeze(1)
    assert len(active) > 100
    kept = torch.ones(len(active), dtype=torch.bool)
    by_index = torch.ones(len(active), dtype=torch.bool)
    for _ in range(20):
        one.observe(stream.rows(4096))
        one.take_closed()
        one.publish(stream.time)
        place = ids(one)
        for number, atom in enumerate(active.tolist()):
            at = place.get(int(first[atom]))
            kept[number] &= at is not None and float(stream.directions[atom] @ one.dictionary.W_dec[at]) > 0.8
        relabelled = torch.randperm(384, generator=stream.generator)  # what indices would be worth were they dealt anew
        shuffled = (stream.directions[active] * one.dictionary.W_dec[relabelled[index[active]]]).sum(1)
        by_index &= shuffled > 0.8
    assert float(kept.float().mean()) >= 0.98
    assert float(by_index.float().mean()) <= 0.02
    told = taken(one)
    assert where(told) == ids(one)
    after, now = (stream.directions @ one.dictionary.W_dec.T).max(1)
    came = late[(after[late] > 0.9) & (stream.chance[late] > 0)]
    assert len(came) > 5
    born = one.identity.born[now[came]]
    assert float((born > 2).float().mean()) > 0.7  # atoms that came with the change are of features born with it
    everything = [row["feature_id"] for version in told for row in version["feature"] if row["state"] == "born"]
    assert len(everything) == len(set(everything))


def test_tables_of_versions_are_of_the_store():
    told = learner(OFTEN, 9500).take_published()
    for version in told:
        assert all(isinstance(batch, pa.RecordBatch) for batch in version.values())
        assert set(version) <= {"dictionary", "feature", "feature_match"}
