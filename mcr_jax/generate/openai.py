"""Chat completions through the openai client: one call per answer, with a typed outcome.

OpenAI, vLLM, DeepSeek, gateways and `transformers serve` speak this wire, each with its own
parameters. A parameter that decides an answer is sent or the run stops with one line. The others
have a fallback when the endpoint refuses them: the name of the token limit, structured output,
log-probabilities and the seed. The retries of the client are off: `pace.Pacer` does the backoff.
"""

import asyncio
import json
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mcr_jax.errors import McrError, UsageError
from mcr_jax.generate import _openai_models, connections, free_question, secrecy
from mcr_jax.generate._openai_reply import NO_QUOTA, read, shutdown_of
from mcr_jax.generate.api import Outcome, Reply, Request, reply_of
from mcr_jax.generate.pace import Fault, Pacer
from mcr_jax.model_specs import Endpoint

if TYPE_CHECKING:
    from mcr_jax.generate.openai_batch import OpenAIBatch

BASE_URL = "OPENAI_BASE_URL"
DEFAULT_ENDPOINT = Endpoint()
OFFICIAL = "https://api.openai.com/v1"
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")

_LIMITS = ("max_tokens", "max_completion_tokens")  # names of the token limit; OpenAI's is last
_FORMS = ("json_schema", "json_object", "")  # of structured output; "" asks for JSON in words
_TOO_LONG = re.compile(
    r"context[ _-]?(length|window)|too many tokens|(prompt|input) is too long", re.I
)
_FILTERED = re.compile(r"content[ _](filter|policy)|content management policy", re.I)
# OpenAI's reasoning models refuse temperature and top_p.
_REASONING = re.compile(r"(?:openai/)?(?:o\d|gpt-(?:[5-9]|\d\d))")
_NO_KEY = "no key"  # the client needs one


class OpenAI:
    """A `Remote` over `chat.completions.create`.

    Reasoning comes in the field `reasoning` (vLLM), in `reasoning_content` (DeepSeek, older vLLM)
    or within the content; in free text it is kept as `<think>` before the content.

    Attributes:
      identity: "ENDPOINT/MODEL" with the settings of sampling and reasoning.
      samples: whether temperature, top_p and top_k are sent.
      pacer: rate limit and backoff of all calls.
      most_tokens: largest token limit of one reply, reasoning included.
      model, endpoint: of every call.
      shown_url, official: base URL without secrets, and whether it is OpenAI's.
      notice: retirement notice of the model, "" without one; None if the server was not asked yet.
    """

    most_tokens = 65_536

    def __init__(
        self,
        model: str,
        *,
        endpoint: Endpoint = DEFAULT_ENDPOINT,
        timeout: float = 60.0,
        concurrency: int = 8,
        thinking: str = "",
        patience: float = 600.0,
        backoff: float = 1.0,
    ):
        """Checks the settings; the first call makes the client.

        Args:
          model: name at the endpoint, for example "gpt-4o-mini".
          endpoint: the server.
          timeout: seconds until a call has failed.
          concurrency: largest number of calls in flight.
          thinking: reasoning effort, one of `EFFORTS`, or "" for the server's default.
          patience: seconds to wait for a server that does not answer.
          backoff: seconds of the first wait.

        Raises:
          UsageError: there is no key, or an argument or the base URL cannot be used.
        """
        if not model.strip() or timeout <= 0 or concurrency < 1:
            raise UsageError(
                f"an OpenAI model needs a name, a timeout above 0 and a concurrency of at least 1, "
                f"not {model!r}, {timeout} and {concurrency}"
            )
        if thinking and thinking.lower() not in EFFORTS:
            raise UsageError(
                f"thinking={thinking!r}: {model} takes {', '.join(EFFORTS)}; '' is the default of "
                "the server"
            )
        self.endpoint, self._url = endpoint, _url(endpoint)
        self.shown_url = _without_user(self._url)
        self.official = official = self._url.startswith(OFFICIAL)
        self._key = _key(endpoint, official)
        self.model, self._timeout, self._concurrency = model, timeout, concurrency
        self._effort = thinking.lower()
        self.samples = samples(model)
        self.identity = identity(model, thinking, endpoint.name)
        self.pacer = Pacer(concurrency, patience=patience, backoff=backoff)
        self._client: Any = None
        self.notice: str | None = None
        # Parameters with a fallback, as far as the endpoint has refused them.
        self._limit, self._refused_limits = _LIMITS[official], set[str]()
        self._form, self._logprobs, self._seed = _FORMS[0], True, True

    async def call(self, request: Request, index: int) -> Reply:
        """Makes one call, with a seed of its own for each index.

        Raises:
          McrError: the server refuses in a way that no retry changes.
        """
        if self._client is None:
            self._open()
        while True:
            options = self._options(request, index)
            try:
                async with asyncio.timeout(self._timeout):
                    response = await self._client.chat.completions.with_raw_response.create(
                        **options
                    )
                body = json.loads(response.http_response.content)
                status = await self._status
            except self._status_error as error:
                if error.status_code in (400, 422) and self._fall_back(options, error):
                    continue
                return self._refused(request, index, error)
            except (TimeoutError, self._timeout_error):
                return self._failed(request, index, f"Timeout: no reply in {self._timeout:g} s")
            except self._api_error as error:
                cause = error.__cause__ or error
                line = f"{type(cause).__name__}: {cause}".rstrip(": ")
                if not isinstance(cause, self._connect_errors):
                    return self._failed(request, index, line)
                line = f"{line}: {self.shown_url}"
                return self._failed(request, index, line, fault=Fault.AWAY)
            except (ValueError, RecursionError) as error:
                return self._failed(request, index, f"unreadable reply: {error}")
            return self.read(request, index, body, status)

    async def close(self) -> None:
        """Closes the connections; the next call opens new ones in its own event loop."""
        if self._client is not None:
            client, self._client = self._client, None
            self._status.cancel()
            await client.close()
            await self._http.aclose()

    def _open(self) -> None:
        import openai

        self._status_error, self._api_error = openai.APIStatusError, openai.APIError
        self._timeout_error = openai.APITimeoutError
        _, self._connect_errors = connections.errors()
        self._http = connections.client(self._concurrency)
        self._client = openai.AsyncOpenAI(**self.client_options(), http_client=self._http)
        self._status = asyncio.ensure_future(self._retirement())

    def batch_wire(self) -> "OpenAIBatch":
        """Returns the batches of the service. Raises UsageError for an endpoint with a tier."""
        if self.endpoint.service_tier:
            raise UsageError(
                f"batches have a tier of their own: leave service_tier out of {self.endpoint.name} "
                "in config.endpoints, or batch"
            )
        from mcr_jax.generate.openai_batch import OpenAIBatch

        return OpenAIBatch(self)

    def client_options(self) -> dict[str, Any]:
        """Returns the arguments of a client: key, address and timeout."""
        return {
            "api_key": self._key or _NO_KEY,
            "base_url": self._url,
            "timeout": self._timeout,
            "max_retries": 0,
        }

    def body(self, request: Request, index: int) -> dict[str, Any]:
        """Returns the JSON of a call, for a batch."""
        options = self._options(request, index)
        return {**options, **options.pop("extra_body", {})}

    def read(self, request: Request, index: int, body: Any, status: str) -> Reply:
        """Turns the body of a 200 into a reply, whatever its form."""
        return secrecy.cleaned(read(request, index, body, status), self._key)

    def refused_in_batch(self, request: Request, index: int, error: Any, *, adapt: bool) -> Reply:
        """Returns the reply for a request that failed in a batch.

        Args:
          request: the request.
          index: index of the answer.
          error: has `status_code`, `message`, `code` and `param`, as the client's errors have.
          adapt: whether later requests leave out the parameter that the error names.
        """
        if adapt and error.status_code in (400, 422):
            self._fall_back(self._options(request, index), error)
        message, about = self.line(error.message), f"{error.message} {error.code or ''}"
        outcome = Outcome.INFRA_ERROR
        if _TOO_LONG.search(about):
            outcome = Outcome.PROMPT_TOO_LONG
        elif _FILTERED.search(about):
            outcome, message = Outcome.BLOCKED, f"prompt blocked: {message}"
        return reply_of(request, index, outcome, error=message)

    async def check(self) -> str:
        """Asks for the model, at no cost; see `free_question.Checked`."""
        return await _openai_models.check(self, min(self._timeout, free_question.TIMEOUT_S))

    async def _retirement(self) -> str:
        """Returns when the model shuts down; asks unless `check` did."""
        if self.notice is None:
            try:
                async with asyncio.timeout(min(self._timeout, free_question.TIMEOUT_S)):
                    found = await _openai_models.asked(self._client.models, "retrieve", self.model)
                self.notice = shutdown_of(found)
            except (self._api_error, TimeoutError, ValueError, RecursionError):
                self.notice = ""
        return self.notice

    def _options(self, request: Request, index: int) -> dict[str, Any]:
        messages = [dict(message) for message in request.messages]
        options: dict[str, Any] = {"model": self.model, self._limit: request.max_tokens}
        if self._seed:
            options["seed"] = request.seed + index
        if self.endpoint.service_tier:
            options["service_tier"] = self.endpoint.service_tier
        if self._effort:
            options["reasoning_effort"] = self._effort
        if self.samples:
            options |= {"temperature": request.temperature, "top_p": request.top_p}
            if request.top_k:  # of vLLM and others; OpenAI refuses it
                options["extra_body"] = {"top_k": request.top_k}
        if request.schema is None:
            if self._logprobs and self.samples:
                options["logprobs"] = True
        elif self._form == "json_schema":
            schema = {"name": "reply", "strict": True, "schema": _root(request.schema)}
            options["response_format"] = {"type": "json_schema", "json_schema": schema}
        else:
            words = "Reply with one JSON object that follows this JSON schema, and nothing else:"
            schema = json.dumps(_root(request.schema), ensure_ascii=False)
            messages.insert(0, {"role": "system", "content": f"{words}\n{schema}"})
            if self._form:
                options["response_format"] = {"type": "json_object"}
        return {**options, "messages": messages}

    def _fall_back(self, options: Mapping[str, Any], error: Any) -> bool:
        """Replaces a parameter that the server refuses; False if it names none that has a fallback.

        Calls in flight together are refused alike: each compares with what it had sent itself.
        """
        text = f"{getattr(error, 'param', '') or ''} {error.message}".lower()
        form = options.get("response_format", {}).get("type", "")
        if form and re.search(r"response_format|json_schema|json_object|structured|grammar", text):
            self._form = max(self._form, _FORMS[_FORMS.index(form) + 1], key=_FORMS.index)
        elif "logprobs" in options and "logprob" in text:
            self._logprobs = False
        elif "seed" in options and re.search(r"\bseed\b", text):
            self._seed = False
        elif "max_completion_tokens" in text:
            sent, other = _LIMITS if _LIMITS[0] in options else _LIMITS[::-1]
            self._refused_limits.add(sent)
            if other in self._refused_limits:
                return False
            self._limit = other
        else:
            return False
        return True

    def _refused(self, request: Request, index: int, error: Any) -> Reply:
        """Turns a status other than 200 into an outcome, or ends the run."""
        code, message = error.status_code, self.line(str(error.message or "no reason"))
        about = f"{message} {getattr(error, 'code', '') or ''}"
        if code in (400, 413, 422) and _TOO_LONG.search(about):
            return reply_of(request, index, Outcome.PROMPT_TOO_LONG, error=message)
        if code in (400, 403) and _FILTERED.search(about):
            return reply_of(request, index, Outcome.BLOCKED, error=f"prompt blocked: {message}")
        if code == 429 and NO_QUOTA in about:
            raise self.no_quota(f"HTTP {code}: {message}") from None
        if 400 <= code < 500 and code not in connections.TRANSIENT:
            key = self.key_words()
            hints = {
                401: f"check {key}",
                402: f"check the balance of {key}",
                403: f"check what {key} may do",
                404: f"check that {self.shown_url} has the model {self.model}",
            }
            hint = hints.get(code, "check the settings of sampling and of the endpoint")
            raise McrError(
                f"{self.endpoint.name} refused the call (HTTP {code}): {message}; {hint}"
            ) from None
        return self._failed(
            request,
            index,
            f"HTTP {code}: {message}",
            fault=Fault.BUSY if code in connections.BUSY else Fault.FAILED,
            retry_after=connections.seconds(error.response.headers.get("retry-after", "")),
        )

    def no_quota(self, line: str) -> McrError:
        """Returns the error of a key without money: no wait solves it."""
        return McrError(
            f"{self.endpoint.name} refused the call ({line}); check the balance of "
            f"{self.key_words()}"
        )

    def key_words(self) -> str:
        """Returns words for the key, with the name of its variable."""
        named = self.endpoint.key_name
        return f"the key in {named}" if named else "the key, which config.endpoints can name"

    def _failed(self, request: Request, index: int, line: str, **known: Any) -> Reply:
        return reply_of(request, index, Outcome.INFRA_ERROR, error=self.line(line), **known)

    def line(self, text: str) -> str:
        """Returns one short printable line without the key, which a server may repeat."""
        return secrecy.line(text, self._key)


def _url(endpoint: Endpoint) -> str:
    url = endpoint.url or os.environ.get(BASE_URL, "").strip() or OFFICIAL
    if not re.match(r"https?://[^/\s]+", url):
        raise UsageError(
            f"the base URL of {endpoint.name} must begin with http:// or https:// and a host"
        )
    return url.rstrip("/")


def _without_user(url: str) -> str:
    """Removes what may be secret in a URL: user, password and query."""
    return re.sub(r"//[^/]*@", "//", url.partition("?")[0])


def _key(endpoint: Endpoint, official: bool) -> str:
    key = os.environ.get(endpoint.key_name, "").strip() if endpoint.key_name else ""
    if not key and endpoint.key_name and (official or endpoint.url):
        raise UsageError(
            f"no key for {endpoint.name}: set {endpoint.key_name} in the environment, or name in "
            f"{BASE_URL} or config.endpoints a server that needs none"
        )
    if not key and official:
        raise UsageError(
            f"no key for {endpoint.name}: write NAME=URL KEY_VARIABLE in config.endpoints"
        )
    if key and (not (key.isascii() and key.isprintable()) or " " in key):
        raise UsageError(f"{endpoint.key_name} is no key: it holds white space or no ASCII")
    return key


def samples(model: str) -> bool:
    """Returns whether temperature and top_p are sent to a model."""
    return not _REASONING.match(model)


def identity(model: str, thinking: str, endpoint: str = "openai") -> str:
    """Returns `OpenAI.identity` of these settings; needs no key."""
    sampling = "" if samples(model) else "/sampling=service default"
    return f"{endpoint}/{model}{sampling}" + (f"/effort={thinking.lower()}" if thinking else "")


def _root(schema: Mapping[str, Any]) -> Any:
    """Returns a schema as strict mode wants it: the root an object, every object closed."""
    if schema.get("type") != "object":
        schema = {"type": "object", "properties": {"reply": schema}}
    return _strict(schema)


def _strict(schema: Any) -> Any:
    """Closes every object of a schema and requires all its properties."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    closed = {key: _strict(value) for key, value in schema.items() if key != "property_ordering"}
    if closed.get("type") == "object":
        properties = list(closed.get("properties", {}))
        closed |= {"additionalProperties": False, "required": properties}
    return closed
