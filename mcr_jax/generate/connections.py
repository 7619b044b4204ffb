"""HTTP connections of google-genai, by httpx2 or httpx, depending on its version."""

import email.utils
import re
import time
from typing import Any

from mcr_jax import http_modules

TRANSIENT = (408, 409, 425, 429, 499)  # the 4xx that a retry may solve
BUSY = (429, 502, 503, 504, 529)
_POOL_CONNECTIONS = 8


def client(most: int) -> Any:
    """Returns an HTTP client that keeps up to `most` connections open, by default only 20.

    It spreads them over small pools: a pool looks at each of its connections twice per call, with
    64 connections a tenth of all work. With a client given, google-genai does not use aiohttp,
    which raises other errors.
    """
    module = http_modules.installed()[0]
    options = {"follow_redirects": True, "verify": module.create_ssl_context()}
    size = _POOL_CONNECTIONS
    limits = module.Limits(max_connections=size, max_keepalive_connections=size)
    pools = [module.AsyncClient(limits=limits, **options) for _ in range(-(-most // size))]
    free = [pools[i // size] for i in range(most)]

    class Client(module.AsyncClient):
        async def send(self, request: Any, **arguments: Any) -> Any:
            if not free:  # more calls than `most`: they wait at one of the pools
                return await pools[0].send(request, **arguments)
            pool = free.pop()
            try:
                return await pool.send(request, **arguments)
            finally:
                free.append(pool)

        async def aclose(self) -> None:
            for pool in pools:
                await pool.aclose()
            await super().aclose()

    return Client(**options)


def errors() -> tuple[tuple[type[Exception], ...], tuple[type[Exception], ...]]:
    """Returns the classes of connection errors, and of those that mean no connection was opened."""
    modules = http_modules.installed()
    names = "ConnectError", "ConnectTimeout"
    return http_modules.errors(), tuple(getattr(m, name) for m in modules for name in names)


def seconds(wait: str) -> float | None:
    """Reads "7", "7s", "1.5s" or an HTTP date as seconds from now; None for any other text."""
    if match := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)s?", wait):
        return float(match[1])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(wait).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
