"""The API on its TCP address."""

from aiohttp import web
from hydrophone_schemas.places import parse_address

from hydrophoned.api.app import create_app, create_runner
from hydrophoned.api.backend import Backend


class HttpServer:
    """Serves a backend over HTTP; ``address`` is HOST:PORT, port 0 chooses a free one."""

    def __init__(self, backend: Backend, address: str) -> None:
        self._address = parse_address(address)
        self._runner: web.AppRunner = create_runner(create_app(backend))

    async def start(self) -> str:
        """Listen; the URL. Raises OSError when the address is taken."""
        await self._runner.setup()
        await web.TCPSite(self._runner, self._address.host, self._address.port).start()
        host, port = self._runner.addresses[0][:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def close(self) -> None:
        """Finish the answers in progress and stop."""
        await self._runner.cleanup()
