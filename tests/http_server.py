"""The HTTP interface in the process of a test, beside a ledger; and a client that sends bytes as they are."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from gateway.config import load
from gateway.observation import Observation

AUDITOR, OPERATOR, BOTH, ENDED = "auditor-" + "a" * 24, "operator-" + "o" * 24, "both-" + "b" * 24, "ended-" + "e" * 24
TOKENS = {
    "AUDITOR_TOKENS": f"{AUDITOR},{BOTH},{ENDED}@2026-01-01",
    "OPERATOR_TOKENS": f"{OPERATOR},{BOTH}",
}
WHO = {
    "nobody": None,
    "a wrong token": "wrong-" + "w" * 24,
    "an ended token": ENDED,
    "auditor": AUDITOR,
    "operator": OPERATOR,
    "both": BOTH,
}


class Asking:
    def __init__(self, observation: Observation, session: aiohttp.ClientSession) -> None:
        self.observation, self._session = observation, session

    @property
    def url(self) -> str:
        return self.observation.url

    async def ask(self, path: str, who: str = "nobody", method: str = "GET", **headers: str) -> tuple[int, Any]:
        """Status and body; the body as JSON where it says it is."""
        token = WHO[who]
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        async with self._session.request(method, self.url + path, headers=headers) as response:
            is_json = "json" in response.headers.get("Content-Type", "")
            return response.status, await (response.json(content_type=None) if is_json else response.text())

    async def raw(self, data: bytes) -> bytes:
        """What is answered to these very bytes, until the connection is closed."""
        parts = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(data)
                await writer.drain()
            async with asyncio.timeout(10):
                with contextlib.suppress(ConnectionError):
                    return await reader.read()
            return b""
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def get(self, target: str, *headers: str) -> bytes:
        """As `raw`, for a target that no client would send so."""
        lines = [f"GET {target} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *headers, "", ""]
        return await self.raw("\r\n".join(lines).encode("utf-8", "surrogateescape"))


@contextlib.asynccontextmanager
async def http_server(folder: Path, **settings: str) -> AsyncIterator[Asking]:
    """Listens beside the ledger of the folder, without the rest of the service."""
    environment = {"SERVICE_PORT": "0", **settings}
    observation = Observation(load({"data": str(folder)}, environment), "1.0", lambda: datetime.now(UTC))
    await observation.start()
    try:
        async with aiohttp.ClientSession() as session:
            yield Asking(observation, session)
    finally:
        await observation.unfollow()
        await observation.stop()
