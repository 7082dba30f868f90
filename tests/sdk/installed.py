"""The entry points of pyproject.toml, found as if the distribution were installed as it stands here."""

import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def entry_points_in(folder: Path) -> Path:
    """Write them as an installer would into ``folder``, which is to come first on the path; older ones are hidden."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    info = folder / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {place}" for name, place in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder
