"""Batches of the Gemini API: inline requests for small ones, else an uploaded JSONL file.

The job's displayName holds our nonce, and every request has a key that its result repeats: results
come in any order, and inline ones without their key are dropped. Jobs are read by plain GET: the
client loses a job's error, and fails where an error of one request has details.
"""

import contextlib
import copy
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mcr_jax import http_modules
from mcr_jax.errors import one_line
from mcr_jax.generate import connections, gemini_access, quota
from mcr_jax.generate._rows import BatchState
from mcr_jax.generate.api import Reply, Request
from mcr_jax.generate.batch_wire import (
    Entry,
    Look,
    Unavailable,
    UsedUp,
    job_name,
    refused,
    results,
    signal_in,
)
from mcr_jax.generate.gemini import API_VERSION, Gemini

INLINE_BYTES = 2_000_000  # of all requests; the service takes up to 20 MB
_GOOGLE = "https://generativelanguage.googleapis.com"
_STATES = {
    "SUCCEEDED": BatchState.DONE,
    "FAILED": BatchState.FAILED,
    "CANCELLED": BatchState.CANCELLED,
    "EXPIRED": BatchState.EXPIRED,
}
_UNREADABLE = (ValueError, TypeError, AttributeError, KeyError, RecursionError)
_PAGE = 100
_TIMEOUT_S = 600.0  # of one call: an upload or a download may be large


class GeminiBatch:
    """A `BatchWire` over google-genai; see there for the methods.

    Attributes:
      most_requests, most_bytes: of one job, below the limits of the service.
    """

    most_requests = 50_000
    most_bytes = 200_000_000

    def __init__(self, service: Gemini):
        """Takes the service whose model, key and settings the requests have."""
        self._service = service
        self._client: Any = None
        self._http: Any = None
        self._canned: _Canned | None = None

    def line(self, entry: Entry) -> bytes:
        """Returns a line of the input file: the body of a single call, with the key."""
        asked = self._service.asked(entry.request, entry.index)
        body = self._offline().body(self._service.model, asked)
        return json.dumps({"key": entry.key, "request": body}).encode()

    def upload(self, nonce: str, entries: Sequence[Entry], lines: Sequence[bytes]) -> Any:
        """Uploads the requests if they are too large to go inline."""
        if sum(map(len, lines)) <= INLINE_BYTES:
            # Copies: creating a job changes the schemas in the client's config.
            return [
                {
                    **copy.deepcopy(self._service.asked(entry.request, entry.index)),
                    "metadata": {"key": entry.key},
                }
                for entry in entries
            ]
        content = io.BytesIO(b"\n".join(lines) + b"\n")
        config = {"display_name": f"mcr-{nonce}", "mime_type": "application/jsonl"}
        with self._calling() as client:
            return client.files.upload(file=content, config=config).name

    def submit(self, nonce: str, source: Any) -> str:
        """Creates the job."""
        with self._calling() as client:
            job = client.batches.create(
                model=self._service.model, src=source, config={"display_name": f"mcr-{nonce}"}
            )
            return job_name(job.name)

    def find(self, nonce: str, since: float) -> str:
        """Looks through all jobs: their order is not documented."""
        token = ""
        while True:
            more = {"pageToken": token} if token else {}
            page = self._get("batches", pageSize=str(_PAGE), **more)
            jobs = page.get("operations") or page.get("batches")
            for job in jobs if isinstance(jobs, list) else ():
                named = _mapping(_mapping(job).get("metadata")).get("displayName")
                if named == f"mcr-{nonce}":
                    with self._calling():
                        return job_name(job.get("name"))
            token, before = page.get("nextPageToken"), token
            if not isinstance(token, str) or not token:
                return ""
            if token == before:
                raise Unavailable("the list of batches repeats a page")

    def look(self, name: str) -> Look:
        """Asks for the job."""
        job = self._get(name)
        facts = _mapping(job.get("metadata"))
        state = _STATES.get(str(facts.get("state", "")).rpartition("_")[2], BatchState.POLLING)
        failed = _mapping(job.get("error"))
        error = str(failed.get("message") or "")
        if failed and state is BatchState.POLLING:
            state = BatchState.FAILED
        if job.get("done") is True and state is BatchState.POLLING:
            state = BatchState.DONE
        if state is BatchState.EXPIRED:
            error = error or "the batch expired before this request was answered"
        counts = _mapping(facts.get("batchStats"))
        done = sum(
            int(n)
            for n in map(counts.get, ("successfulRequestCount", "failedRequestCount"))
            if re.fullmatch("[0-9]{1,9}", str(n))
        )
        return Look(state=state, done=done, error=self._service.line(error), job=job)

    def fetch(self, look: Look) -> list[tuple[str, Any]]:
        """Returns the inline results, and those of the results file."""
        found = []
        output = _mapping(look.job.get("response")) or _mapping(
            _mapping(look.job.get("metadata")).get("output")
        )
        inline = output.get("inlinedResponses")
        inline = _mapping(inline).get("inlinedResponses", inline)
        for result in inline if isinstance(inline, list) else ():
            key = _mapping(_mapping(result).get("metadata")).get("key")
            found.append((key if isinstance(key, str) else "", _mapping(result)))
        file = output.get("responsesFile")
        if isinstance(file, str) and file:
            with self._calling(file) as client:
                found += list(results(client.files.download(file=file), "key"))
        return found

    def reply(self, result: Any, request: Request, index: int) -> Reply:
        """Reads a result as a reply to a single call is read."""
        if isinstance(body := result.get("response"), dict):
            try:
                response = self._offline().response(body)
            except _UNREADABLE as error:
                line = f"unreadable reply: {type(error).__name__}: {error}"
                return self._service.refused_in_batch(request, index, line)
            return self._service.read(request, index, response)
        error = _mapping(result.get("error"))
        message = str(error.get("message") or error.get("status") or "no reason given")
        return self._service.refused_in_batch(request, index, message)

    def close(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            client, self._client = self._client, None
            client.close()
            self._http.close()

    def _offline(self) -> "_Canned":
        if self._canned is None:
            gemini_access.ignore_warnings()
            self._canned = _Canned()
        return self._canned

    @contextlib.contextmanager
    def _calling(self, name: str = "") -> Iterator[Any]:
        """Gives the client, and turns errors into those of a `BatchWire`.

        Args:
          name: the job or file that the call is about; "" for a call about none.
        """
        from google.genai import errors

        if self._client is None:
            service, module = self._service, http_modules.installed()[0]
            self._http = module.Client(follow_redirects=True, timeout=_TIMEOUT_S)
            self._client = _client(service.key, service.base_url, self._http)
        line, (transport, away) = self._service.line, connections.errors()
        try:
            yield self._client
        except Exception as error:
            if (stop := signal_in(error)) is not None:
                raise stop from None
            if isinstance(error, errors.APIError):
                if used_up := quota.of_the_day(error):
                    raise UsedUp(quota.line(line(used_up))) from None
                code, why = error.code, error.message or error.status or "no reason"
                missing = name if code in (403, 404) else ""  # 403: a file that was deleted
                said = line(f"HTTP {code}: {one_line(str(why), 200)}")
                wait = quota.retry_after(error)
                raise refused("Gemini", code, said, missing=missing, wait=wait) from None
            if isinstance(error, transport):
                said = line(f"{type(error).__name__}: {error}")
                raise Unavailable(said, refused=isinstance(error, away)) from None
            # The client raises these for a body that is no JSON object or has other types.
            if isinstance(error, _UNREADABLE):
                raise Unavailable(line(f"unreadable reply: {error}")) from None
            raise

    def _get(self, path: str, **query: str) -> dict[str, Any]:
        from google.genai import errors

        with self._calling(path if "/" in path else ""):
            base = (self._service.base_url or _GOOGLE).rstrip("/")
            answer = self._http.get(
                f"{base}/{API_VERSION}/{path}",
                params=query,
                headers={"x-goog-api-key": self._service.key},
            )
            errors.APIError.raise_for_response(answer)
            body = answer.json()
            if not isinstance(body, dict):
                raise ValueError("no JSON object")
            return body


class _Canned:
    """A client of google-genai without a network: it converts as the client of single calls does.

    A batch takes the body that a single call would send, and its results have the body that a
    single call would get.
    """

    def __init__(self) -> None:
        from google.genai import types

        module = http_modules.installed()[0]
        self._sent, self._answer = b"", b"{}"

        def handle(request: Any) -> Any:
            self._sent = request.content
            return module.Response(200, content=self._answer)

        http = module.Client(transport=module.MockTransport(handle))
        self._client = _client("none", "http://offline.invalid", http)
        fields = types.GenerateContentConfig.model_fields
        once = {name: False for name in ("automatic_continuation",) if name in fields}
        self._config = types.GenerateContentConfig(**once)  # no second call

    def body(self, model: str, asked: Mapping[str, Any]) -> Any:
        """Returns the JSON that a call with these arguments sends."""
        self._answer = b"{}"
        self._client.models.generate_content(model=model, **asked)
        return json.loads(self._sent)

    def response(self, body: Mapping[str, Any]) -> Any:
        """Returns the response that the client makes of this JSON."""
        self._answer = json.dumps(body).encode()
        return self._client.models.generate_content(model="m", contents="?", config=self._config)


def _client(key: str, base_url: str | None, http: Any) -> Any:
    from google import genai
    from google.genai import types

    return genai.Client(
        vertexai=False,
        api_key=key,
        http_options=types.HttpOptions(
            base_url=base_url,
            api_version=API_VERSION,
            timeout=round(_TIMEOUT_S * 1000),
            retry_options=types.HttpRetryOptions(attempts=1),
            httpx_client=http,
        ),
    )


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
