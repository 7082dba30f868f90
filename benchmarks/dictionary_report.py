"""What a run of the dictionary benchmark found, printed as it comes and written as JSON at the end."""

import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import machine


class Report:
    """Figures by key, the bounds of those that are medians, and one line for each run behind them."""

    def __init__(self) -> None:
        self.ratios: dict[str, float] = {}
        self.intervals: dict[str, list[float]] = {}
        self.runs: list[dict[str, Any]] = []
        self.began = time.perf_counter()

    def say(self, text: str) -> None:
        """A line of progress, with the minutes since the start."""
        print(f"[{(time.perf_counter() - self.began) / 60:5.1f} min] {text}", flush=True)

    def add(self, key: str, value: float) -> None:
        """A figure that is one number."""
        self.ratios[key] = value
        self.say(f"{key} = {value:.4f}")

    def add_median(self, key: str, values: list[float]) -> None:
        """The median of paired ratios, with the order statistics that hold the true median 19 times in 20."""
        ordered, count = sorted(values), len(values)
        reach = min(count // 2, math.ceil(0.98 * math.sqrt(count)))  # 1.96 standard deviations of a fair coin's heads
        low, high = ordered[max(0, count // 2 - reach)], ordered[min(count - 1, (count - 1) // 2 + reach)]
        self.ratios[key] = statistics.median(ordered)
        self.intervals[key] = [low, high]
        self.say(f"{key} = {self.ratios[key]:.4f}, between {low:.4f} and {high:.4f} over {count} pairs")

    def run(self, **columns: Any) -> None:
        """One run behind the figures."""
        self.runs.append(columns)
        self.say(
            ", ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in columns.items()
            )
        )

    def write(self, path: Path, *, threads: int, peers: dict[str, str], settings: dict[str, Any]) -> None:
        """All of it as JSON, in the shape of the other benchmarks."""
        content = {
            "ratios": self.ratios,
            "intervals": self.intervals,
            "machine": machine.describe(),
            "versions": machine.versions() | peers,
            "threads": threads,
            "settings": settings,
            "runs": self.runs,
        }
        path.write_text(json.dumps(content, indent=2) + "\n")
