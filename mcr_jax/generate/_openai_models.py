"""Free question to a server of chat completions: GET /models/MODEL, and the list after a 404."""

import json
import re
from typing import TYPE_CHECKING, Any

from mcr_jax.errors import McrError
from mcr_jax.generate import connections, free_question
from mcr_jax.generate._openai_reply import shutdown_of

if TYPE_CHECKING:
    from mcr_jax.generate.openai import OpenAI

# OpenAI says so of a key that may make calls and not read models.
_NO_SCOPE = re.compile(r"missing scope|insufficient permission", re.I)


async def check(service: "OpenAI", timeout: float) -> str:
    """Implements `free_question.Checked`; sets `service.notice` if the server answers."""
    import openai

    options = service.client_options() | {"timeout": timeout}
    try:
        async with openai.AsyncOpenAI(**options, http_client=connections.client(1)) as client:
            try:
                service.notice = shutdown_of(await asked(client.models, "retrieve", service.model))
            except openai.APIStatusError as error:
                if error.status_code < 500 and error.status_code not in connections.TRANSIENT:
                    service.notice = ""
                return await _refuse(service, error, client.models)
    except openai.APIConnectionError as error:  # a timeout is one, too
        cause = error.__cause__ or error
        line = f"{type(cause).__name__}: {cause}".rstrip(": ")
        return free_question.away(service.shown_url, service.line(line))
    except (openai.APIError, ValueError, RecursionError):
        service.notice = ""
    return ""


async def _refuse(service: "OpenAI", error: Any, models: Any) -> str:
    """Returns what `free_question.unlisted` says after a 404, else "".

    Raises McrError if the error shows that the key is refused or the model is not there.
    """
    import openai

    code, message = error.status_code, service.line(str(error.message))
    if code in (401, 403) and not _NO_SCOPE.search(message):
        raise McrError(
            f"{service.endpoint.name} refused the key (HTTP {code}): {message}; check "
            f"{service.key_words()}"
        ) from None
    if code != 404:
        return ""
    try:
        names = [entry["id"] for entry in (await asked(models, "list"))["data"]]
    except (openai.APIError, ValueError, TypeError, LookupError, RecursionError):
        names = []
    where, said = f"{service.endpoint.name} at {service.shown_url}", f"HTTP {code}: {message}"
    official = service.official
    return free_question.unlisted(service.model, names, official=official, where=where, said=said)


async def asked(models: Any, route: str, *arguments: str) -> Any:
    """Returns the JSON of a route of /models."""
    raw = await getattr(models.with_raw_response, route)(*arguments)
    return json.loads(raw.http_response.content)
