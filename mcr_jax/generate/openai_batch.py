"""Batches of OpenAI: a JSONL file of chat completions, through the openai client.

Each line has a `custom_id`, by which the results are joined: they come in any order, in a file of
answers and a file of errors. The job's metadata hold our nonce.
"""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mcr_jax.errors import McrError, one_line
from mcr_jax.generate import connections
from mcr_jax.generate._rows import BatchState
from mcr_jax.generate.api import Reply, Request
from mcr_jax.generate.batch_wire import Entry, Look, Unavailable, UnknownJob, signal_in

if TYPE_CHECKING:
    from mcr_jax.generate.openai import OpenAI

NONCE = "mcr_batch"  # of the metadata
_ENDPOINT = "/v1/chat/completions"
_STATES = {
    "completed": BatchState.DONE,
    "failed": BatchState.FAILED,
    "cancelled": BatchState.CANCELLED,
    "expired": BatchState.EXPIRED,
}
_TRANSIENT = (408, 409, 425, 429, 499)  # the 4xx that a retry may solve
_PAGE = 100
_UPLOAD_S = 600.0  # most seconds for an upload or a download


class OpenAIBatch:
    """A `BatchWire` over the openai client; see there for the methods.

    Attributes:
      most_requests, most_bytes: limits of OpenAI.
    """

    most_requests = 50_000
    most_bytes = 190_000_000

    def __init__(self, service: "OpenAI"):
        """Takes the service whose model, key and settings the requests have."""
        self._service = service
        self._client: Any = None
        self._adapts = True  # to the first error of a result file; the others are like it

    def line(self, entry: Entry) -> bytes:
        """Returns a line of the input file."""
        body = self._service.body(entry.request, entry.index)
        line = {"custom_id": entry.key, "method": "POST", "url": _ENDPOINT, "body": body}
        return json.dumps(line).encode()

    def upload(self, nonce: str, entries: Sequence[Entry], lines: Sequence[bytes]) -> str:
        """Uploads the input file; returns its id."""
        file = (f"mcr-{nonce}.jsonl", b"\n".join(lines) + b"\n", "application/jsonl")
        with self._errors() as client:
            raw = client.files.with_raw_response.create(
                file=file, purpose="batch", timeout=_UPLOAD_S
            )
            return _text(_body(raw), "id")

    def submit(self, nonce: str, source: str) -> str:
        """Creates the job."""
        with self._errors() as client:
            raw = client.batches.with_raw_response.create(
                input_file_id=source,
                endpoint=_ENDPOINT,
                completion_window="24h",
                metadata={NONCE: nonce},
            )
            return _text(_body(raw), "id")

    def find(self, nonce: str, since: float) -> str:
        """Looks through the jobs, the newest first."""
        after: dict[str, str] = {}
        while True:
            with self._errors() as client:
                page = _body(client.batches.with_raw_response.list(limit=_PAGE, **after))
            jobs = page.get("data")
            jobs = [job for job in (jobs if isinstance(jobs, list) else ()) if _is_job(job)]
            for job in jobs:
                metadata = job.get("metadata")
                if isinstance(metadata, dict) and metadata.get(NONCE) == nonce:
                    return job["id"]
            created = jobs[-1].get("created_at") if jobs else None
            old = isinstance(created, int | float) and created < since
            if not jobs or old or not page.get("has_more"):
                return ""
            after = {"after": jobs[-1]["id"]}

    def look(self, name: str) -> Look:
        """Asks for the job."""
        with self._errors(name) as client:
            job = _body(client.batches.with_raw_response.retrieve(name))
        counts = job.get("request_counts")
        counts = counts if isinstance(counts, dict) else {}
        done = sum(n for n in map(counts.get, ("completed", "failed")) if isinstance(n, int))
        errors = job.get("errors")
        errors = errors.get("data") if isinstance(errors, dict) else None
        lines = [
            str(error.get("message") or error.get("code"))
            for error in (errors if isinstance(errors, list) else ())
            if isinstance(error, dict)
        ]
        state = _STATES.get(str(job.get("status")), BatchState.POLLING)
        error = "; ".join(lines)
        if state is BatchState.EXPIRED:
            error = error or "the batch expired before this request was answered"
        return Look(state=state, done=done, error=self._service.line(error), job=job)

    def fetch(self, look: Look) -> list[tuple[str, Any]]:
        """Downloads the answers and the errors."""
        found, self._adapts = [], True
        for field in ("output_file_id", "error_file_id"):
            file = look.job.get(field)
            if not isinstance(file, str) or not file:
                continue
            with self._errors(file) as client:
                content = client.files.content(file, timeout=_UPLOAD_S).content
            found += list(results(content, "custom_id"))
        return found

    def reply(self, result: Any, request: Request, index: int) -> Reply:
        """Reads a line of a result file as a reply to a single call is read."""
        response = result.get("response")
        response = response if isinstance(response, dict) else {}
        status, body = response.get("status_code"), response.get("body")
        if status == 200:
            return self._service.read(request, index, body)
        error = body.get("error") if isinstance(body, dict) else result.get("error")
        error = _Failed(error if isinstance(error, dict) else {}, status)
        adapt, self._adapts = self._adapts, False
        return self._service.refused_in_batch(request, index, error, adapt=adapt)

    def close(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            client, self._client = self._client, None
            client.close()

    def _errors(self, name: str = "") -> "_Errors":
        if self._client is None:
            import openai

            self._client = openai.OpenAI(**self._service.client_options())
        return _Errors(self._client, self._service, name)


class _Failed:
    """Error of one request, with the fields of the client's `APIStatusError`."""

    def __init__(self, error: dict[str, Any], status: Any):
        self.status_code, self.code, self.param = status, error.get("code"), error.get("param")
        self.message = str(error.get("message") or self.code or "no reason given")


class _Errors:
    """Gives the client, and turns its errors into those of a `BatchWire`."""

    def __init__(self, client: Any, service: "OpenAI", name: str):
        self._client, self._service, self._name = client, service, name

    def __enter__(self) -> Any:
        return self._client

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if (stop := signal_in(error)) is not None:
            raise stop from None
        import openai

        if isinstance(error, openai.APIStatusError):
            code = error.status_code
            line = self._service.line(f"HTTP {code}: {error.message}")
            if code == 404 and self._name:
                raise UnknownJob(f"OpenAI knows no {self._name} ({line})") from None
            if 400 <= code < 500 and code not in _TRANSIENT:
                raise McrError(f"OpenAI refused a batch ({line})") from None
            wait = connections.seconds(error.response.headers.get("retry-after", ""))
            raise Unavailable(line, refused=code == 429, retry_after=wait) from None
        if isinstance(error, openai.APIError):
            cause = error.__cause__ or error
            line = self._service.line(f"{type(cause).__name__}: {cause}")
            away = isinstance(cause, connections.errors()[1])
            raise Unavailable(line, refused=away) from None
        if isinstance(error, ValueError):
            raise Unavailable(self._service.line(f"unreadable reply: {error}")) from None


def results(content: bytes, key: str) -> Iterator[tuple[str, Any]]:
    """Reads a JSONL file of results: the key of each line, "" if it is missing, and the line.

    A line that is no JSON object, such as a cut one, is skipped: its request counts as unanswered.
    """
    for line in content.split(b"\n"):
        try:
            result = json.loads(line)
        except ValueError:
            continue
        if isinstance(result, dict):
            name = result.get(key)
            yield name if isinstance(name, str) else "", result


def _body(raw: Any) -> dict[str, Any]:
    body = json.loads(raw.http_response.content)
    if not isinstance(body, dict):
        raise ValueError("no JSON object")
    return body


def _text(body: dict[str, Any], field: str) -> str:
    if not isinstance(body.get(field), str) or not body[field]:
        raise ValueError(f"no {field} in {one_line(str(body), 100)}")
    return body[field]


def _is_job(job: Any) -> bool:
    return isinstance(job, dict) and isinstance(job.get("id"), str)
