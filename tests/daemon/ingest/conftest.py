import asyncio

import pytest
import uvloop
from ingest_peer import Harness


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def harness(request, tmp_path):
    return Harness(tmp_path, request.param)
