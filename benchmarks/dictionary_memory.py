"""Memory of training at F = 65536, in a process of its own.

The child makes its rows, trains a tiny dictionary so that torch's threads and libraries have their memory, notes its
resident size, has the kernel forget the highest one so far, and then makes, initialises and trains the large one. Its
highest resident size (VmHWM of /proc/self/status) beyond that note is set over the bytes of parameters and moments. The
copy of the encoder in bfloat16 is not counted as a parameter, but is in the peak.
"""

import json
import subprocess
import sys
from pathlib import Path

from dictionary_report import Report

WIDTH, FEATURES, K = 576, 65536, 32
BATCHES = (512, 2048)


def run(report: Report, *, quick: bool) -> None:
    if not Path("/proc/self/clear_refs").exists():
        report.say("memory: there is no /proc/self/clear_refs on this system, nothing is measured")
        return
    for batch in BATCHES[:1] if quick else BATCHES:
        code = f"import dictionary_memory; dictionary_memory.child({batch}, {2 if quick else 8})"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
        sizes = json.loads(done.stdout.splitlines()[-1])
        report.run(part="memory", features=FEATURES, batch=batch, **sizes)
        ending = "" if batch == BATCHES[0] else f"_{batch}"
        report.add(f"memory_ratio{ending}", max(sizes["initialise_mib"], sizes["train_mib"]) / sizes["state_mib"])
        report.add(f"memory_ratio_steps{ending}", sizes["train_mib"] / sizes["state_mib"])


def child(batch: int, steps: int) -> None:
    """Measure, and print the sizes as JSON."""
    import torch
    from hydrophoned.learn.sae import DictionaryConfig, SparseAutoencoder

    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(batch * steps, WIDTH, generator=generator)
    start = torch.randn(4096, WIDTH, generator=generator)
    tiny = SparseAutoencoder(DictionaryConfig(width=WIDTH, features=64, k=8), generator=generator)
    tiny.initialise(start)
    for part in rows.split(batch):
        tiny.partial_fit(part)
    before = _mib("VmRSS")
    _forget_peak()
    large = SparseAutoencoder(DictionaryConfig(width=WIDTH, features=FEATURES, k=K), generator=generator)
    large.initialise(start)
    initialised = _mib("VmHWM") - before
    _forget_peak()
    for part in rows.split(batch):
        large.partial_fit(part)
    trained = _mib("VmHWM") - before
    learned = [name for name in large.latents.tensors() if name != "steps"]
    state = sum(large.latents.tensors()[name].nbytes for name in learned) / 2**20
    print(json.dumps({"state_mib": state, "initialise_mib": initialised, "train_mib": trained}))


def _mib(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"/proc/self/status has no {name}")


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")
