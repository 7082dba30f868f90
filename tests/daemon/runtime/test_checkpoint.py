import json

import pytest
import torch
from hydrophoned.learn.errors import CheckpointError
from hydrophoned.runtime.checkpoint import load_checkpoint, load_json, save_checkpoint, write_json_atomically
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

STATE = {
    "a": {"weights": torch.arange(6, dtype=torch.float64).view(2, 3).T, "rows": 5, "rate": 0.1, "none": None},
    "b": {"mask": torch.tensor([True, False])},
}


def test_round_trip_gives_tensors_and_numbers_back(tmp_path):
    save_checkpoint(tmp_path, STATE, {"stream": "m@1/s"})
    state, about = load_checkpoint(tmp_path)
    assert about == {"stream": "m@1/s"}
    assert torch.equal(state["a"].pop("weights"), STATE["a"]["weights"])
    assert torch.equal(state["b"]["mask"], STATE["b"]["mask"])
    assert state["a"] == {"rows": 5, "rate": 0.1, "none": None}


def test_nothing_there_is_none(tmp_path):
    assert load_checkpoint(tmp_path / "absent") is None


def test_only_the_newest_are_kept(tmp_path):
    for number in range(5):
        save_checkpoint(tmp_path, {"a": {"number": number}}, {}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000004", "checkpoint-000005"]
    assert load_checkpoint(tmp_path)[0]["a"]["number"] == 4


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path):
    save_checkpoint(tmp_path, {"a": {"number": 1, "t": torch.zeros(3)}}, {})
    path = save_checkpoint(tmp_path, {"a": {"number": 2, "t": torch.zeros(3)}}, {})
    tensors = path / "state.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    assert load_checkpoint(tmp_path)[0]["a"]["number"] == 1


def test_when_all_are_damaged_the_error_names_each(tmp_path):
    path = save_checkpoint(tmp_path, {"a": {"t": torch.zeros(3)}}, {})
    (path / "state.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"checkpoint-000001.*damaged"):
        load_checkpoint(tmp_path)


def test_a_draft_left_by_a_crash_is_ignored(tmp_path):
    save_checkpoint(tmp_path, {"a": {"number": 1}}, {})
    (tmp_path / ".draft-1").mkdir()
    (tmp_path / ".draft-1" / "state.json").write_text("{")
    assert load_checkpoint(tmp_path)[0]["a"]["number"] == 1


@given(st.binary(max_size=400))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes_in_the_files_give_a_clear_error(tmp_path, data):
    path = save_checkpoint(tmp_path, {"a": {"t": torch.zeros(3)}}, {}, keep=1)
    (path / "state.json").write_bytes(data)
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path)


def test_a_newer_format_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, {"a": {"t": torch.zeros(3)}}, {})
    document = json.loads((path / "state.json").read_text())
    document["format"] = 99
    (path / "state.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="format 99"):
        load_checkpoint(tmp_path)


def test_json_documents(tmp_path):
    assert load_json(tmp_path / "x.json") is None
    write_json_atomically(tmp_path / "x.json", {"a": 1})
    assert load_json(tmp_path / "x.json") == {"a": 1}
    (tmp_path / "x.json").write_text("[1")
    with pytest.raises(CheckpointError, match="Move it away"):
        load_json(tmp_path / "x.json")
