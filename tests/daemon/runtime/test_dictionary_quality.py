"""``hydrophone dictionary assess`` and ``compare`` as a user runs them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hydrophoned.formats import hydrophone
from hydrophoned.formats.exchange import from_dictionary, to_dictionary
from hydrophoned.learn.sae import DictionaryConfig, SparseAutoencoder
from hydrophoned.runtime.cli import app
from hydrophoned.runtime.dictionaries import open_dictionary
from typer.testing import CliRunner

D, F, K = 24, 48, 3


def rows_of(n, seed):
    """Sums of three of 40 directions, away from the origin, and which they are of."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.nn.functional.normalize(torch.randn(40, D, generator=torch.Generator().manual_seed(1)), dim=1)
    chosen = torch.rand(n, 40, generator=g).topk(K, dim=1).indices
    weight = 2 + 3 * torch.rand(n, K, generator=g)
    return (weight[:, :, None] * basis[chosen]).sum(1) + 0.5, chosen


def learned(seed):
    rows = rows_of(20_000, seed)[0]
    config = DictionaryConfig(width=D, features=F, variant="topk", k=K, low_precision=False, dead_after_rows=2048)
    dictionary = SparseAutoencoder(config, generator=torch.Generator().manual_seed(seed))
    dictionary.initialise(rows[:1024])
    for _ in range(6):
        for batch in rows.split(256):
            dictionary.partial_fit(batch)
    return dictionary


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two dictionaries of other seeds, and rows in both kinds of file: two are sink rows, one is not finite."""
    folder = tmp_path_factory.mktemp("quality")
    for seed in (0, 1):
        hydrophone.save(from_dictionary(learned(seed)), folder / f"d{seed}")
    x, chosen = rows_of(6000, 9)
    rows = x.numpy().copy()
    rows[[100, 2000]] *= 500
    rows[50, 3] = np.nan
    np.save(folder / "rows.npy", rows)
    has = (chosen < 2).any(1).numpy()
    columns = {
        "activation": pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), D),
        "has": pa.array(has, mask=np.arange(6000) % 1000 == 7),
        "always": np.ones(6000, dtype=bool),
        "request": [f"r{number // 25}" for number in range(6000)],
    }
    pq.write_table(pa.table(columns), folder / "rows.parquet", row_group_size=500)
    return folder


def run(*arguments, status=0):
    done = CliRunner().invoke(app, ["dictionary", *map(str, arguments)])
    assert done.exit_code == status, done.output
    return done


def told(*arguments):
    return json.loads(run(*arguments, "--json").stdout)


def test_a_dictionary_is_judged_beside_components(files):
    found = told("assess", files / "d0", files / "rows.npy")
    assert (found["rows"], found["rows_sink"], found["rows_skipped"]) == (5997, 2, 1)
    assert (found["rows_in_files"], found["request_column"], found["rows_of_a_run"]) == (6000, None, 256)
    kept = np.delete(np.load(files / "rows.npy"), [50, 100, 2000], axis=0)
    x, dictionary = torch.from_numpy(kept), to_dictionary(open_dictionary(files / "d0"))
    codes = dictionary.encode(x)
    error = float((dictionary.decode(codes) - x).square().sum() / (x - x.mean(0)).square().sum())
    quality = found["quality"]
    assert quality["fvu"] == pytest.approx(error, rel=1e-4)
    assert quality["l0"] == pytest.approx(float((codes.value > 0).sum()) / len(x))
    fired = codes.index[codes.value > 0].unique()
    assert quality["dead_fraction"] == pytest.approx(1 - len(fired) / F)
    assert sum(quality["density"]) == F
    assert [one["kept"] for one in quality["by_count"]] == [1, 2, 3]
    values = torch.linalg.svdvals(x - x.mean(0)).square()
    assert quality["components"] == K
    assert quality["pca_fvu"] == pytest.approx(float(values[K:].sum() / values.sum()), rel=0.03)
    assert found["label"] is None
    assert found["notes"] == []


def test_the_same_rows_in_another_file_give_the_same_figures(files):
    one, other = (told("assess", files / "d0", files / f"rows.{form}") for form in ("npy", "parquet"))
    assert one["quality"] == other["quality"]


def test_a_label_is_looked_for_in_a_dictionary(files):
    arguments = ["assess", files / "d0", files / "rows.parquet", "--labels", "has", "--requests", "request"]
    found = told(*arguments)
    label = found["label"]
    assert (label["column"], label["rows"], label["rows_unlabelled"], label["requests"]) == ("has", 5991, 6, 240)
    assert found["request_column"] == "request"
    assert label["aurocs"]["probe"] > 0.95
    assert label["splitting"]["features"] == 2, "the label is that one of two directions is there"
    assert label["splitting_permuted"]["features"] is None
    assert label["found"]["silent"] <= label["found"]["called"] <= label["rows_scored"]
    text = run(*arguments).stdout
    assert "requests by column request, 240 in all" in text
    assert "split over 2 features" in text
    assert "floor: permuted" in text


def test_without_requests_runs_of_rows_stand_for_them_and_it_is_said(files):
    text = run("assess", files / "d0", files / "rows.parquet", "--labels", "has").stdout
    assert "no requests named: runs of 256 consecutive rows stand for them, 24 in all" in text
    assert "5,997 rows of the 6,000 in rows.parquet; set apart: 2 sink rows, 1 not finite" in text
    assert "3 principal components instead: fvu 0." in text


def test_two_seeds_are_compared_with_their_floors(files):
    found = told("compare", files / "d0", files / "d1", files / "rows.parquet", "--requests", "request")
    for way in ("activation", "decoder"):
        assert found[way]["strong"] > 0.5
        assert found[way]["mean"] > found[way]["floors"]["shuffled"]["mean"] + 0.3
        assert abs(found[way]["floors"]["random_pairs"]["mean"]) < 0.15
    assert abs(found["activation"]["floors"]["shuffled"]["mean"]) < 0.05
    assert found["same_partner"] > 0.8
    assert (found["rows"], found["requests"]) == (5997, 240)
    matches = found["matches"]
    assert len(matches["compared"]) == found["compared"][0]
    for way in ("activation", "decoder"):
        partner, score = matches[way]["partner"], matches[way]["score"]
        assert len(partner) == len(score) == F
        assert [one is None for one in partner] == [one is None for one in score], "unknown is null, in both"
        assert sum(one is not None for one in partner) == found[way]["pairs"]


def test_a_dictionary_is_itself_in_words_too(files):
    text = run("compare", files / "d0", files / "d0", files / "rows.npy").stdout
    assert "correlation of values" in text
    assert "100.0 %" in text
    assert "both name the same partner for 100.0 %" in text
    assert "floor: random pairs" in text


def test_few_rows_are_taken_evenly(files):
    found = told("assess", files / "d0", files / "rows.npy", files / "rows.parquet", "--rows", 4000)
    assert found["rows"] + found["rows_sink"] + found["rows_skipped"] <= 4000
    assert found["rows"] > 3400
    every = told("assess", files / "d0", files / "rows.npy")
    assert found["quality"]["fvu"] == pytest.approx(every["quality"]["fvu"], rel=0.1)
    few = told("assess", files / "d0", files / "rows.npy", "--rows", 100)
    assert 80 <= few["rows"] <= 100
    assert few["rows_of_a_run"] == 6


def test_sink_rows_are_kept_apart_only_if_wanted(files):
    found = told("assess", files / "d0", files / "rows.npy", "--sink-norm-factor", "inf")
    assert (found["rows"], found["rows_sink"]) == (5999, 0)


def test_what_a_user_can_mend_is_said(files, tmp_path):
    def error(*arguments, status=1):
        done = run(*arguments, status=status)
        assert "Traceback" not in done.output
        return done.stderr

    rows = files / "rows.parquet"
    assert "has no column 'mist'; its columns are activation, has" in error(
        "assess", files / "d0", rows, "--labels", "mist"
    )
    assert "has no column 'mist'" in error("assess", files / "d0", rows, "--requests", "mist")
    assert "has no column 'mist' of lists of floats" in error("assess", files / "d0", rows, "--column", "mist")
    assert "rows.npy has no columns beside its rows" in error(
        "assess", files / "d0", files / "rows.npy", "--labels", "has"
    )
    assert "the label is true on all 5997 rows" in error("assess", files / "d0", rows, "--labels", "always")
    np.save(tmp_path / "few.npy", np.zeros((30, D), np.float32))
    assert "30 rows are too few to judge" in error("assess", files / "d0", tmp_path / "few.npy")
    assert "30 rows are too few: features are compared" in error(
        "compare", files / "d0", files / "d1", tmp_path / "few.npy"
    )
    np.save(tmp_path / "wide.npy", np.zeros((300, D + 1), np.float32))
    assert f"wide.npy has rows of width 25; the dictionary {files / 'd1'} takes 24" in error(
        "assess", files / "d1", tmp_path / "wide.npy"
    )
    np.save(tmp_path / "nan.npy", np.full((300, D), np.nan, np.float32))
    assert "0 rows are too few" in error("assess", files / "d0", tmp_path / "nan.npy")
    assert "no row to compare by: 0 were sinks and 300 not finite" in error(
        "compare", files / "d0", files / "d1", tmp_path / "nan.npy"
    )
    assert "is no folder" in error("assess", files / "d7", rows)
    assert "--sink-norm-factor" in error("assess", files / "d0", rows, "--sink-norm-factor", -1, status=2)


def test_dictionaries_of_other_widths_are_not_compared(files, tmp_path):
    config = DictionaryConfig(width=D - 1, features=8, variant="topk", k=2, low_precision=False)
    other = SparseAutoencoder(config, generator=torch.Generator().manual_seed(0))
    hydrophone.save(from_dictionary(other), tmp_path / "narrow")
    done = run("compare", files / "d0", tmp_path / "narrow", files / "rows.npy", status=1)
    assert f"rows.npy has rows of width 24; the dictionary {tmp_path / 'narrow'} takes 23" in done.stderr
