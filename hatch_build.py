"""Builds the compiled kernels while the package is built or installed; without a C++ compiler it warns and goes on.

python hatch_build.py      builds them in place, for work on them
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a script, outside of a build
    BuildHookInterface = object

SOURCE = Path("daemon/hydrophoned/learn/kernels/cpu.cpp")
BUILT = SOURCE.parent / "built"
# no -ffast-math: NaN must stay NaN, and sums keep their order
FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
LEVELS = {
    "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    "v3": ["-march=x86-64-v3"],
    "base": [],
}


def build(root: Path) -> tuple[list[Path], str]:
    """Compile for each level of this kind of processor; the files made, and what the compiler said when it failed."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return [], "there is no C++ compiler"
    machine = platform.machine().lower()
    (root / BUILT).mkdir(exist_ok=True)
    made, complaint = [], ""
    for level, flags in LEVELS.items():
        if flags and machine not in ("x86_64", "amd64"):
            continue
        target = root / BUILT / f"cpu-{machine}-{level}.so"
        # not linked to OpenMP's runtime: the one that torch brings is used. Without it (macOS), one thread.
        for threads in (["-fopenmp"], []):
            partial = target.with_suffix(".new")
            compiled = [compiler, *FLAGS, *flags, "-c", *threads, str(root / SOURCE), "-o", f"{partial}.o"]
            linked = [compiler, "-shared", f"{partial}.o", "-o", str(partial)]
            if sys.platform == "darwin":
                linked += ["-undefined", "dynamic_lookup"]
            try:
                for command in (compiled, linked):
                    subprocess.run(command, check=True, capture_output=True, text=True)
            except subprocess.CalledProcessError as error:
                complaint = error.stderr.strip()
            else:
                partial.replace(target)  # never half a file
                made.append(target)
                break
            finally:
                Path(f"{partial}.o").unlink(missing_ok=True)
    return made, complaint


class KernelBuildHook(BuildHookInterface):
    """Called by hatchling for wheels and editable installs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002  hatchling's signature
        """Compile, and mark the wheel as made for this platform."""
        root = Path(self.root)
        made, complaint = build(root)
        if not made:
            self.app.display_warning(f"no compiled kernels, the daemon will learn more slowly: {complaint}")
            return
        build_data["artifacts"] += [f"/{path.relative_to(root).as_posix()}" for path in made]
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


if __name__ == "__main__":
    files, problem = build(Path(__file__).parent)
    for file in files:
        sys.stdout.write(f"{file}\n")
    if not files:
        sys.exit(problem)
