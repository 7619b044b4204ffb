"""Free question to Gemini: models.get, and the list of models after a 404."""

import re
from typing import TYPE_CHECKING, Any

from mcr_jax.errors import McrError
from mcr_jax.generate import connections, free_question, gemini_access

if TYPE_CHECKING:
    from mcr_jax.generate.gemini import Gemini

# The client does not catch these for a body that is no JSON object or has other types.
UNREADABLE = (ValueError, TypeError, AttributeError, RecursionError)
_NOT_VALID = re.compile(r"api key (not valid|expired)", re.I)
_PAGE = 1000  # models in the list


async def check(service: "Gemini", models: Any) -> str:
    """Implements `free_question.Checked` with the `models` of a client."""
    from google.genai.errors import APIError

    transport = connections.errors()[0]
    try:
        await models.get(model=service.model)
    except APIError as error:
        code, said = error.code, f"HTTP {error.code}: {service.line(str(error.message))}"
        if code in (401, 403) or (code == 400 and _NOT_VALID.search(str(error.message))):
            name = gemini_access.key_name()
            raise McrError(f"Gemini refused the key ({said}); check the key in {name}") from None
        if code != 404:
            return ""
        try:
            page = (await models.list(config={"page_size": _PAGE})).page
            names = [str(model.name).removeprefix("models/") for model in page]
        except (APIError, *transport, *UNREADABLE):
            names = []
        url, model = service.base_url, service.model.removeprefix("models/")
        where = f"Gemini at {url}" if url else "Gemini"
        return free_question.unlisted(model, names, official=not url, where=where, said=said)
    except transport as error:
        line = f"{type(error).__name__}: {error}".rstrip(": ")
        return free_question.away(service.base_url or "Gemini", service.line(line))
    except UNREADABLE:
        pass
    return ""
