"""What holds for the whole repository: walls, style, types, links, exports, and reasons and pins of dependencies."""

import doctest
import importlib
import pkgutil
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("sdk", "daemon", "schemas", "tests", "benchmarks", "examples", "docs")
PACKAGES = ("hydrophone", "hydrophoned", "hydrophone_schemas")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGES = sorted(
    page
    for page in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("changelog/*.md"),
        *ROOT.glob("examples/**/*.md"),
    ]
)


def run(*command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


def tool(name):
    return str(Path(sys.executable).with_name(name))


def test_the_walls_between_the_packages_hold():
    run(tool("lint-imports"), "--no-cache")


def test_ruff_finds_nothing():
    run(tool("ruff"), "check", ".")


def test_everything_is_formatted():
    run(tool("ruff"), "format", "--check", ".")


def test_types_are_right():
    run(tool("mypy"))


def python_files():
    return sorted(path for folder in SOURCES for path in (ROOT / folder).rglob("*.py"))


def test_every_exception_to_a_rule_says_why():
    bare = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in python_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"#\s*noqa\b(?!: [A-Z]+\d+(, ?[A-Z]+\d+)*  \S)", line) and path != Path(__file__)
    ]
    assert not bare


# -- exports -------------------------------------------------------------------------------------------------------


TRITON = importlib.util.find_spec("triton") is not None


def modules():
    for package in map(importlib.import_module, PACKAGES):
        yield package.__name__
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not found.name.endswith("__main__") and (TRITON or "kernels.fused" not in found.name):
                yield found.name


NAMES = sorted(modules())


@pytest.mark.parametrize("name", NAMES)
def test_what_a_module_exports_is_there(name):
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", [])
    assert len(exported) == len(set(exported))
    assert [one for one in exported if not hasattr(module, one)] == []


def test_examples_in_docstrings_run():
    results = {name: doctest.testmod(importlib.import_module(name)) for name in NAMES}
    assert {name: result.failed for name, result in results.items() if result.failed} == {}
    assert sum(result.attempted for result in results.values()) > 10


def test_the_sdk_exports_what_its_init_imports():
    import hydrophone

    public = {name for name, value in vars(hydrophone).items() if not name.startswith("_") and not is_module(value)}
    assert public == (set(hydrophone.__all__) | {"VERSION"}) - {"__version__"}


def is_module(value):
    return type(value) is type(sys)


def test_importing_the_sdk_imports_nothing_beyond_the_bare_install():
    heavy = ("torch", "duckdb", "pydantic", "aiohttp", "rich", "typer", "transformers")
    code = f"import sys, hydrophone; sys.exit(' '.join(name for name in {heavy} if name in sys.modules) or 0)"
    run(sys.executable, "-c", code)


# -- docs ----------------------------------------------------------------------------------------------------------


def without_code(text):
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """What GitHub makes of a page's headings."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL), flags=re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_local_links_resolve(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "docs" in page.parts and page.name != "index.md"], ids=lambda p: p.name
)
def test_every_page_is_in_the_index(page):
    index = ROOT / "docs/index.md"
    assert f"({page.relative_to(index.parent)})" in index.read_text()


MADE = runpy.run_path(str(ROOT / "docs/make_reference.py"))


@pytest.mark.parametrize("name", MADE["PAGES"])
def test_reference_pages_are_as_the_code_is(name):
    page = ROOT / "docs/reference" / name
    assert page.read_text(encoding="utf-8") == MADE["PAGES"][name](), "run: make docs"


def requirements():
    groups = PROJECT["optional-dependencies"] | {"": PROJECT["dependencies"]}
    names = {re.split(r"[\[<>=;! ]", one)[0] for group in groups.values() for one in group}
    return sorted(names - {PROJECT["name"]})


@pytest.mark.parametrize("name", requirements())
def test_every_dependency_has_its_reason_and_its_pin(name):
    assert re.search(
        rf"^\| ([\w-]+, )*{re.escape(name)}(, [\w-]+)* \| \S", (ROOT / "docs/RATIONALE.md").read_text(), re.MULTILINE
    )
    pins = (ROOT / "constraints.txt").read_text() + (ROOT / "constraints-drift.txt").read_text()
    assert re.search(rf"^{name.replace('-', '[-_]')}==\S+$", pins, re.MULTILINE)


def test_changelog_fragments_are_named_by_kind():
    kinds = "added|changed|fixed|removed|security"
    fragments = [path.name for path in (ROOT / "changelog").iterdir() if path.name != "README.md"]
    assert [name for name in fragments if not re.fullmatch(rf"[a-z0-9-]+\.({kinds})\.md", name)] == []


def test_the_version_is_the_same_everywhere():
    import hydrophone
    import hydrophone_schemas

    assert hydrophone.__version__ == hydrophone_schemas.__version__ == PROJECT["version"]
