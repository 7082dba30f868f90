"""What listening costs the model: tokens per second with everything on against nothing attached.

Everything on: tap at one site with every row, daemon (a child process at low priority, as by default) receiving,
learning every row, storing windows, serving its API; on the same processors as the model. Blocks with and without the
tap alternate in one process: the model with the tap, and a copy of it without, that shares its weights. The daemon runs
all the time; its shuffle buffer stays full, so that a block's rows push out as many to be learned. What it has not
learned when a block ends, the next block without the tap pays for: the figure errs against us.

    python benchmarks/host_slowdown.py [--quick] [--json FILE]

Prints ``tokens_ratio``: the median over pairs of (tokens/s with) / (tokens/s without).
"""

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import hydrophone
import torch
from hydrophone.demo.corpus import builtin_documents, chunks
from hydrophone.demo.daemon import DemoDaemon
from hydrophone.demo.model import default_site, load_model
from machine import describe, versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 pairs instead of 15")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--block-tokens", type=int, default=4096, help="tokens per block")
    args = parser.parse_args()
    pairs = 4 if args.quick else 15

    loaded = load_model(None)
    site = default_site(loaded.model)
    stream = chunks(builtin_documents(), loaded.tokenizer, 256, 0)

    shared = {id(tensor): tensor for tensor in (*loaded.model.parameters(), *loaded.model.buffers())}
    plain = copy.deepcopy(loaded.model, shared)

    def block(model: torch.nn.Module) -> float:
        """Tokens per second over one block."""
        tokens, started = 0, time.perf_counter()
        while tokens < args.block_tokens:
            ids = torch.tensor([next(stream).token_ids])
            model(ids, logits_to_keep=1)
            tokens += ids.numel()
        return tokens / (time.perf_counter() - started)

    rates: dict[str, list[float]] = {"with": [], "without": []}
    with (
        DemoDaemon(features=4608, k=32) as daemon,
        hydrophone.attach(loaded.model, sites=[site], name=loaded.name, version="1", daemon=daemon.address) as tap,
        torch.inference_mode(),
    ):
        while (daemon.streams() or [{}])[0].get("rows_learned") in (None, 0):  # until the shuffle buffer is full
            block(loaded.model)
            time.sleep(1)  # its figures are read anew twice a second
        learned = [daemon.streams()[0]["rows_learned"]]
        for number in range(pairs):
            for kind in ("with", "without") if number % 2 else ("without", "with"):
                rates[kind].append(block(loaded.model if kind == "with" else plain))
            print(f"pair {number + 1}: with {rates['with'][-1]:.0f}, without {rates['without'][-1]:.0f} tokens/s")
        time.sleep(3)
        (figures,) = daemon.streams()
        learned.append(figures["rows_learned"])
        sent = tap.status().streams[0]["sent"]
    ratios = [a / b for a, b in zip(rates["with"], rates["without"], strict=True)]
    dropped = sum(figures["rows_dropped"].values())
    print(
        f"rows sent {sent}, received {figures['rows_received']}, dropped {dropped}; "
        f"learned in the measured blocks {learned[1] - learned[0]} of {pairs * args.block_tokens}"
    )
    print(f"tokens_ratio {statistics.median(ratios):.3f} (min {min(ratios):.3f}, max {max(ratios):.3f})")
    if args.json:
        document = {
            "ratios": {"tokens_ratio": statistics.median(ratios)},
            "pairs": rates,
            "rows": {name: figures[name] for name in ("rows_received", "rows_learned", "rows_dropped")},
            "machine": describe(),
            "versions": versions(),
        }
        args.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
