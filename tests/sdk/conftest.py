import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sink import Sink
from torch import nn

torch.set_num_threads(1)


@pytest.fixture
def socket_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hy") as directory:  # short: socket paths are bounded
        yield Path(directory) / "s"


@pytest.fixture
def sink(socket_path: Path) -> Iterator[Sink]:
    sink = Sink(socket_path).start()
    yield sink
    sink.stop()


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    left = [thread for thread in threading.enumerate() if thread.name == "hydrophone-producer"]
    for thread in left:
        thread.join(3)
    assert not [thread for thread in left if thread.is_alive()], "a tap was not detached"


class Blocks(nn.Module):
    """[B, T, d] to [B, T, d] through three linear blocks."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(width, width) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


@pytest.fixture
def blocks() -> Blocks:
    torch.manual_seed(0)
    return Blocks().eval()


@pytest.fixture(scope="session")
def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        eos_token_id=None,
        bos_token_id=1,
    )
    return LlamaForCausalLM(config).eval()
