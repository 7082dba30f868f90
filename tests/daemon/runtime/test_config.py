"""The configuration: where values come from, which wins, what errors say, and that the docs say the same."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.runtime.config import Config, config_reference, load_config, load_with_origins
from hydrophoned.runtime.errors import ConfigError
from hydrophoned.runtime.settings import SECTIONS, LearnOverride, read_bytes
from hydrophoned.runtime.settings_page import as_toml
from hypothesis import given
from hypothesis import strategies as st

PAGE = Path(__file__).parents[3] / "docs/reference/config.md"


@pytest.fixture(autouse=True)
def _clean(monkeypatch, tmp_path):
    import os

    for variable in [name for name in os.environ if name.startswith("HYDROPHONE_")]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write(tmp_path):
    def write(text, name="hydrophone.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def problems(path, overrides=None):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides or {})
    return str(caught.value).splitlines()


def test_flags_win_over_environment_over_file_over_defaults(write, monkeypatch):
    path = write("[learn]\nk = 2\nfeatures = 20\nbatch_rows = 200\n")
    monkeypatch.setenv("HYDROPHONE_LEARN__K", "3")
    monkeypatch.setenv("HYDROPHONE_LEARN__FEATURES", "30")
    config, origins = load_with_origins(path, {"learn": {"k": 4}})
    assert (config.learn.k, config.learn.features, config.learn.batch_rows, config.learn.warmup_rows) == (
        4,
        30,
        200,
        2048,
    )
    assert origins == {
        ("learn", "k"): "the command line",
        ("learn", "features"): "the environment",
        ("learn", "batch_rows"): f"{path}:4",
    }


def test_the_environment_names_the_file_where_no_flag_does(write, monkeypatch):
    monkeypatch.setenv("HYDROPHONE_CONFIG", str(write("[daemon]\nnice = 1\n", "env.toml")))
    assert load_config(None, {}).daemon.nice == 1
    assert load_config(write("[daemon]\nnice = 2\n"), {}).daemon.nice == 2


def test_no_file_is_looked_for(write):
    write("[daemon]\nnice = 1\n")
    assert load_config(None, {}).daemon.nice == 10


def test_every_problem_is_told_with_place_setting_value_and_what_is_accepted(write):
    path = write("[daemon]\nnice = 40\n\n[learn]\nfeaturs = 3\n[[learn.override]]\nmatch = '*'\nk = 0\n")
    found = problems(path, {"store": {"keep_checkpoints": 0}})
    assert len(found) == 4
    assert found[0].startswith(f"{path}:2: daemon.nice = 40: ")
    assert found[0].endswith("19 is the lowest priority; at least 0, at most 19)")
    assert any(line == f"{path}:5: learn.featurs: there is no such setting; did you mean features?" for line in found)
    assert any(line.startswith(f"{path}:8: learn.override[0].k = 0: ") for line in found)
    assert any(line.startswith("the command line: store.keep_checkpoints = 0: ") for line in found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[lern]\nk = 3\n", ":1: there is no section [lern]; did you mean learn?"),
        ("learn = 3\n", ": [learn] must be a table, not 3"),
        ("[learn]\nk = \n", ":2: is not TOML: "),
        ("[learn]\nk = 3\nk = 4\n", ": is not TOML: "),
        ("[learn]\nfeatures = 4\nk = 5\n", ":1: learn: k = 5 is more than features = 4"),
        ("[learn]\nbatch_rows = 5000\n", ":1: learn: batch_rows = 5000 is more than buffer_rows = 4096"),
        (
            "[learn]\nk = 40\n[[learn.override]]\nmatch = 'a@*'\nfeatures = 8\n",
            "override with match = 'a@*': k = 40 is",
        ),
        ("[[learn.override]]\nk = 4\n", ":1: learn.override[0].match: is missing: glob over stream ids"),
        ("[[learn.override]]\nmatch = '*'\ndevice = 'cpu'\n", ":3: learn.override[0].device: there is no such setting"),
        (
            "[learn]\nnormalise = 'control'\n",
            ":1: learn: normalise = control needs a control_file: the rows to whiten by",
        ),
        ("[[learn.override]]\nmatch = 'a@*'\nnormalise = 'control'\n", "match = 'a@*': normalise = control needs a"),
        ("[learn]\nsplit_by = ['a', 'phase']\n", "split_by = a, phase names an attribute twice, or phase, which is"),
        ("[learn]\nsplit_by = ['a', 'a']\n", "split_by = a, a names an attribute twice"),
        ("[learn]\nsplit_by = ['a', 'b', 'c', 'd', 'e']\n", "at most 4 items"),
        ("[learn]\nnormalise = 'zca'\n", ":2: learn.normalise = 'zca': input should be 'scale', 'whiten' or 'control'"),
        ("[http]\naddress = '0.0.0.0:80'\n", ":2: http.address = '0.0.0.0:80': is not on the loopback interface"),
        ("[http]\naddress = 'example.org:80'\n", ":2: http.address = 'example.org:80': is not on the loopback"),
        ("[http]\naddress = '/run/x.sock'\n", "must be HOST:PORT, not the socket path /run/x.sock"),
        ("[ingest]\ntcp = '[::]:80'\n", ":2: ingest.tcp = '[::]:80': is not on the loopback interface"),
        (f"[ingest]\nsocket = '/{'x' * 107}'\n", "has more than 107 bytes"),
        ("[ingest]\nqueue_bytes = '64 pounds'\n", "must be a number of bytes, or a text such as 64MiB"),
        ("[daemon]\nlog_level = 'loud'\n", "one of debug, info, warning, error"),
    ],
)
def test_what_is_wrong_in_a_file_is_an_error_that_says_so(write, text, message):
    path = write(text)
    (line,) = problems(path)
    assert line.startswith(str(path))
    assert message in line


def test_files_that_cannot_be_read_are_errors(tmp_path, write):
    assert problems(tmp_path / "none.toml") == [f"{tmp_path / 'none.toml'}: cannot be read: No such file or directory"]
    path = tmp_path / "latin.toml"
    path.write_bytes(b"# \xe9\n")
    assert "is not UTF-8 text" in problems(path)[0]


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("HYDROPHONE_LERN__K", "3", "HYDROPHONE_LERN__K: there is no section LERN; did you mean LEARN?"),
        ("HYDROPHONE_LEARN__KK", "3", "the environment: learn.kk: there is no such setting; did you mean k?"),
        ("HYDROPHONE_LEARN__K", "many", "the environment: learn.k = 'many': input should be a valid integer"),
        ("HYDROPHONE_HTTP", "127.0.0.1:80", "one of a field is named HYDROPHONE_SECTION__FIELD"),
    ],
)
def test_what_is_wrong_in_the_environment_is_an_error_that_says_so(monkeypatch, variable, value, message):
    monkeypatch.setenv(variable, value)
    (line,) = problems(None)
    assert message in line


def test_variables_of_the_sdk_and_the_client_are_left_alone(monkeypatch):
    monkeypatch.setenv("HYDROPHONE_SOCKET", "/run/x.sock")
    monkeypatch.setenv("HYDROPHONE_URL", "http://127.0.0.1:1")
    load_config(None, {})


def test_overrides_apply_by_glob_in_their_order(write):
    config = load_config(
        write(
            "[learn]\nk = 16\n"
            "[[learn.override]]\nmatch = 'smollm2@*'\nfeatures = 4608\nk = 8\n"
            "[[learn.override]]\nmatch = '*/model.layers.15'\nk = 64\n"
        ),
        {},
    )
    assert (config.learn_for("smollm2@1/model.layers.15").k, config.learn_for("smollm2@1/model.layers.3").k) == (64, 8)
    assert config.learn_for("smollm2@1/model.layers.15").features == 4608
    assert (config.learn_for("other@1/x").k, config.learn_for("other@1/x").features) == (16, 0)
    assert config.learner_config("smollm2@2/model.layers.15") == LearnerConfig(features=4608, k=64)


def test_streams_are_whitened_by_the_control_rows_that_their_override_names(write):
    config = load_config(
        write(
            "[learn]\ncontrol_file = 'healthy.npy'\n"
            "[[learn.override]]\nmatch = 'a@*'\nnormalise = 'control'\n"
            "[[learn.override]]\nmatch = 'b@*'\nnormalise = 'control'\ncontrol_file = 'blank.npy'\n"
        ),
        {},
    )
    found = {name: config.learn_for(f"{name}@1/x") for name in "abc"}
    assert {name: (one.normalise, one.control_file) for name, one in found.items()} == {
        "a": ("control", Path("healthy.npy")),
        "b": ("control", Path("blank.npy")),
        "c": ("scale", Path("healthy.npy")),
    }
    assert config.learner_config("a@1/x") == LearnerConfig(normalise="control")


def test_defaults_of_learning_are_the_learners_own():
    assert asdict(load_config(None, {}).learner_config("a@1/b")) == asdict(LearnerConfig())


def test_none_switches_off_what_can_be_absent(monkeypatch):
    monkeypatch.setenv("HYDROPHONE_INGEST__SOCKET", "none")
    config = load_config(None, {"http": {"address": "none"}})
    assert config.http.address is None
    assert config.ingest.socket is None


def test_modes_are_octal_and_sizes_have_units(monkeypatch):
    monkeypatch.setenv("HYDROPHONE_INGEST__SOCKET_MODE", "660")
    monkeypatch.setenv("HYDROPHONE_INGEST__QUEUE_BYTES", "1GiB")
    config = load_config(None, {})
    assert config.ingest.socket_mode == 0o660
    assert config.ingest.queue_bytes == 1 << 30


@given(
    st.integers(0, 1 << 20), st.sampled_from([("", 1), ("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)])
)
def test_sizes_read_as_they_are_written(count, unit):
    assert read_bytes(f"{count}{unit[0]}") == read_bytes(f"{count} {unit[0]}".strip()) == count * unit[1]


def test_the_data_folder_is_the_service_managers_else_the_users(monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", "/home/u/data")
    assert load_config(None, {}).daemon.data_dir == Path("/home/u/data/hydrophone/daemon")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/hydrophone:/other")
    assert load_config(None, {}).daemon.data_dir == Path("/var/lib/hydrophone")


def test_the_configuration_as_toml_gives_the_same_again(write):
    flags = {
        "daemon": {"nice": 3, "parent_fd": 7},
        "ingest": {"socket": "none", "socket_mode": "0660", "tcp": "127.0.0.1:9"},
        "learn": {
            "override": [{"match": 'quoted "glob"*', "k": 3, "sink_norm_factor": 4.5}, {"match": "*", "seed": 1}]
        },
    }
    config, origins = load_with_origins(None, flags)
    text = as_toml(config, origins)
    assert "nice = 3  # from the command line" in text
    assert load_config(write(text), {}) == config


def test_every_setting_has_a_description_and_every_number_bounds():
    fields = {(name, field): info for name, section in SECTIONS.items() for field, info in section.model_fields.items()}
    fields |= {("override", field): info for field, info in LearnOverride.model_fields.items()}
    assert all(info.description for info in fields.values())
    numbers = {place: info for place, info in fields.items() if info.annotation in (int, float)}
    unbounded = [
        place
        for place, info in numbers.items()
        if not any(hasattr(rule, "ge") or hasattr(rule, "gt") for rule in info.metadata)
    ]
    assert numbers
    assert not unbounded


def test_the_schema_knows_every_setting():
    schema = Config.model_json_schema()
    for section in SECTIONS.values():
        assert set(schema["$defs"][section.__name__]["properties"]) == set(section.model_fields)


def test_the_reference_page_is_made_from_the_settings():
    assert PAGE.read_text() == config_reference(), "run: make docs"


def test_reading_the_configuration_imports_no_torch():
    code = "import sys, hydrophoned.runtime.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
