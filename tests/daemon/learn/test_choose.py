"""Which kernels a device gets. Where Triton does not work, torch's own operations do, and the log says so once."""

import logging
import subprocess
import sys

import pytest
import torch
from hydrophoned.learn import kernels
from hydrophoned.learn.kernels import choose, cpu, plain

CUDA = torch.device("cuda", 0)
ASK = """
import logging, sys, torch
logging.basicConfig(format="%(levelname)s %(message)s")
from hydrophoned.learn.kernels import choose, plain
assert all(choose(torch.device("cuda", 0)) is plain for _ in range(3))
"""


@pytest.fixture(autouse=True)
def forgotten():
    kernels._fused.cache_clear()
    yield
    kernels._fused.cache_clear()


def asked(tmp_path, triton):
    """What the log says when kernels for CUDA are chosen and ``triton`` is the text of the module of that name."""
    (tmp_path / "triton.py").write_text(triton, encoding="utf-8")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{ASK}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


@pytest.mark.parametrize(
    ("triton", "reason"),
    [
        ("raise ImportError('libcuda.so.1 cannot be opened')", "ImportError: libcuda.so.1 cannot be opened"),
        ("raise RuntimeError('0 active drivers')", "RuntimeError: 0 active drivers"),
        ("def jit(f): return f", "triton.language"),  # too old, or something else of that name
        (
            "import sys; sys.modules['triton'] = None\nraise ModuleNotFoundError(\"No module named 'triton'\")",
            "No module",
        ),
    ],
)
def test_a_triton_that_cannot_be_imported_is_told_once(tmp_path, triton, reason):
    (line,) = asked(tmp_path, triton)
    assert line.startswith("WARNING no Triton kernels on cuda:0, torch's own operations are used and are slower: ")
    assert reason in line


def test_triton_that_cannot_run_a_kernel_is_told_once(caplog):
    """Here it has no GPU, or is not there at all; elsewhere its compiler or the driver may be missing."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: it does run")
    with caplog.at_level(logging.WARNING):
        assert all(choose(CUDA) is plain for _ in range(3))
    assert len(caplog.records) == 1
    assert "cuda:0" in caplog.text


def test_the_processor_has_the_compiled_ones_without_a_word(caplog):
    with caplog.at_level(logging.DEBUG):
        assert choose(torch.device("cpu")) is (cpu if cpu.available() else plain)
        assert choose(torch.device("cpu"), torch.float64) is plain
    assert not caplog.records


def test_plain_ones_can_be_asked_for_anywhere(monkeypatch, caplog):
    monkeypatch.setenv("HYDROPHONE_KERNELS", "plain")
    assert choose(torch.device("cpu")) is plain
    assert choose(CUDA) is plain
    assert not caplog.records
