import json
import subprocess
import sys
from collections.abc import Iterator

import hydrophone
import numpy as np
import pytest
import torch
from hydrophone.producer import release
from sink import Sink


@pytest.fixture(autouse=True)
def forget_producers() -> Iterator[None]:
    yield
    module = sys.modules["hydrophone.log"]
    for producer in module._PRODUCERS.values():
        release(producer, 1.0)
    module._PRODUCERS.clear()
    module._REQUESTS.clear()


class Jax:
    """An array of a framework that only speaks DLPack."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack__(self, **options: object) -> object:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


X = np.arange(12, dtype=np.float32).reshape(4, 3) / 7


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (X, X),
        (X.astype(np.float64), X),
        (X.astype(np.float16), X.astype(np.float16)),
        (X.T.copy().T, X),
        (X[0], X[:1]),
        (Jax(X), X),
        (torch.tensor(X, requires_grad=True), X),
        (torch.tensor(X).bfloat16(), torch.tensor(X).bfloat16().float().numpy()),
        (X.tolist(), X),
    ],
    ids=["float32", "float64", "float16", "strided", "one row", "dlpack", "torch", "torch bfloat16", "list"],
)
def test_rows_arrive_as_they_were(sink: Sink, array: object, expected: np.ndarray) -> None:
    hydrophone.log("emb", array, daemon=str(sink.path))
    assert hydrophone.flush()
    assert sink.batches[0][0] == "emb@1/rows"
    np.testing.assert_array_equal(sink.values(), expected)
    assert [row.position for row in sink.rows()] == list(range(len(expected)))


def test_rows_are_copied(sink: Sink) -> None:
    array = X.copy()
    hydrophone.log("emb", array, daemon=str(sink.path))
    array[:] = 0
    assert hydrophone.flush()
    np.testing.assert_array_equal(sink.values(), X)


def test_requests_positions_and_names(sink: Sink) -> None:
    daemon = str(sink.path)
    hydrophone.log("a@2/site.x", X, request="r", kind="query", daemon=daemon)
    hydrophone.log("a@2/site.x", X[:2], request="r", daemon=daemon)
    hydrophone.log("a@2/site.x", X[:2], request="r", positions=[9, 4], daemon=daemon)
    hydrophone.log("a@2/site.x", X[:2], request="r", daemon=daemon)
    hydrophone.log("a@2/site.x", X[:3], request=["p", "q", "r"], daemon=daemon)
    assert hydrophone.flush()
    assert [(row.request, row.position) for row in sink.rows("a@2/site.x")] == [
        *(("r", n) for n in (0, 1, 2, 3, 4, 5, 9, 4, 10, 11)), ("p", 0), ("q", 0), ("r", 12),
    ]  # fmt: skip
    assert next(iter(sink.requests.values()))["attributes"] == {"kind": "query"}


@pytest.mark.parametrize(
    "array", [np.arange(3), np.array(["a"]), object(), np.zeros((2, 2, 2)), np.zeros((0, 3)), np.float32(1)]
)
def test_what_is_not_rows(sink: Sink, array: object) -> None:
    with pytest.raises(hydrophone.InvalidArray):
        hydrophone.log("emb", array, daemon=str(sink.path))


@pytest.mark.parametrize(
    "options",
    [
        {"positions": [1]},
        {"positions": [-1, 0, 1, 2]},
        {"positions": [0.0] * 4},
        {"request": ["a", "b"]},
        {"daemon": "nowhere"},
    ],
)
def test_options_that_do_not_fit(sink: Sink, options: dict[str, object]) -> None:
    with pytest.raises(hydrophone.InvalidOption):
        hydrophone.log("emb", X, **({"daemon": str(sink.path)} | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("stream", ["", "a b", "a@", "a@1/x y"])
def test_streams_that_are_not_named_well(sink: Sink, stream: str) -> None:
    with pytest.raises(hydrophone.InvalidOption):
        hydrophone.log(stream, X, daemon=str(sink.path))


def test_the_bare_sdk_imports_neither_torch_nor_the_daemon() -> None:
    code = "import json, sys, hydrophone, numpy as n; print(json.dumps(sorted(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60).stdout
    top = {name.partition(".")[0] for name in json.loads(found)}
    assert not top & {"torch", "duckdb", "hydrophoned", "aiohttp", "pydantic", "transformers"}


def test_without_a_daemon_and_none_installed_the_error_says_what_to_install(tmp_path: object) -> None:
    code = """
import importlib.util
import hydrophone
importlib.util.find_spec = lambda name: None  # the daemon may be installed beside this test
try:
    hydrophone.log("a", [[1.0]])
except hydrophone.DaemonNotFound as error:
    print(error)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, timeout=60,
        env={"PYTHONPATH": ":".join(sys.path), "HYDROPHONE_SOCKET": f"{tmp_path}/none"},
    )  # fmt: skip
    assert b"pip install 'hydrophone[daemon]'" in found.stdout
    assert f"{tmp_path}/none".encode() in found.stdout


PUBLIC = {
    "CannotHook", "Client", "DaemonFailed", "DaemonNotFound", "DaemonUnreachable", "DictionaryChanged",
    "HydrophoneError", "InvalidArray", "InvalidOption", "InvalidSite", "LossRecovered", "RequestRefused", "Scope",
    "SiteNotFound", "Status", "Tap", "__version__", "attach", "flush", "log", "loss_recovered",
}  # fmt: skip


def test_public_names() -> None:
    assert set(hydrophone.__all__) == PUBLIC
    assert all(hasattr(hydrophone, name) for name in PUBLIC)


@pytest.mark.parametrize(
    "options",
    [
        {"sample": 1.5},
        {"buffer_bytes": 10},
        {"sites": []},
        {"dtype": "int8"},
        {"name": "a b"},
        {"version": ""},
        {"daemon": "x"},
    ],
)
def test_options_of_attach(sink: Sink, options: dict[str, object]) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    arguments = {"sites": "0", "daemon": str(sink.path)} | options
    with pytest.raises(hydrophone.InvalidOption):
        hydrophone.attach(model, **arguments)  # type: ignore[arg-type]
    assert not model[0]._forward_hooks


def test_the_version_follows_the_weights_and_not_the_sites() -> None:
    from hydrophone.fingerprint import fingerprint

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    before = fingerprint(model)
    assert fingerprint(model) == before
    with torch.no_grad():
        model[0].weight[1, 1] += 1
    assert fingerprint(model) != before
