"""HTTP connections of google-genai, in httpx2 or in httpx as its version wants."""

from typing import Any

from mcr_jax import http_modules

_A_POOL = 8  # connections


def client(most: int) -> Any:
    """One that keeps every connection open: by default all but 20 are opened anew for each call.

    It is made of small pools, because a pool looks at each of its connections twice per call: with
    64 of them, that is a tenth of all work. Given one, google-genai uses it where it would else
    prefer aiohttp, whose endings are others.
    """
    module = http_modules.installed()[0]
    options = {"follow_redirects": True, "verify": module.create_ssl_context()}
    pools = [_pool(module, **options) for _ in range(-(-most // _A_POOL))]
    free = [pools[i // _A_POOL] for i in range(most)]

    class Client(module.AsyncClient):
        async def send(self, request: Any, **how: Any) -> Any:
            if not free:  # more calls than were announced: they wait at one of the pools
                return await pools[0].send(request, **how)
            pool = free.pop()
            try:
                return await pool.send(request, **how)
            finally:
                free.append(pool)

        async def aclose(self) -> None:
            for pool in pools:
                await pool.aclose()
            await super().aclose()

    return Client(**options)


def _pool(module: Any, **options: Any) -> Any:
    limits = module.Limits(max_connections=_A_POOL, max_keepalive_connections=_A_POOL)
    return module.AsyncClient(limits=limits, **options)


def errors() -> tuple[tuple[type[Exception], ...], tuple[type[Exception], ...]]:
    """Errors of a connection, and of these the ones that say that none could be opened."""
    modules = http_modules.installed()
    unopened = (
        error for module in modules for error in (module.ConnectError, module.ConnectTimeout)
    )
    return http_modules.errors(), tuple(unopened)
