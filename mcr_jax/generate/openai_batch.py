"""Batches of OpenAI: a JSONL file of chat completions, through the openai client.

Each line has a `custom_id`, by which the results are joined: they come in any order, in a file of
answers and a file of errors. The job's metadata hold our nonce.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mcr_jax.errors import McrError, Stopped
from mcr_jax.generate import connections, free_question
from mcr_jax.generate._openai_reply import NO_QUOTA, shutdown_of
from mcr_jax.generate._rows import BatchState
from mcr_jax.generate.api import Reply, Request
from mcr_jax.generate.batch_wire import (
    Entry,
    Look,
    Unavailable,
    job_name,
    refused,
    results,
    signal_in,
)

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
        with self._calling() as client:
            raw = client.files.with_raw_response.create(
                file=file, purpose="batch", timeout=_UPLOAD_S
            )
            return job_name(_body(raw).get("id"))

    def submit(self, nonce: str, source: str) -> str:
        """Creates the job."""
        with self._calling() as client:
            raw = client.batches.with_raw_response.create(
                input_file_id=source,
                endpoint=_ENDPOINT,
                completion_window="24h",
                metadata={NONCE: nonce},
            )
            return job_name(_body(raw).get("id"))

    def find(self, nonce: str, since: float) -> str:
        """Looks through the jobs, the newest first."""
        after: dict[str, str] = {}
        while True:
            with self._calling() as client:
                page = _body(client.batches.with_raw_response.list(limit=_PAGE, **after))
                if not isinstance(page.get("data"), list):
                    raise ValueError("no list of batches")
                jobs = [job for job in page["data"] if isinstance(job, dict)]
                last = job_name(jobs[-1].get("id")) if jobs else ""
                if last and last == after.get("after"):
                    raise ValueError("a page of batches comes twice")
            for job in jobs:
                metadata = job.get("metadata")
                if isinstance(metadata, dict) and metadata.get(NONCE) == nonce:
                    with self._calling():
                        return job_name(job.get("id"))
            created = jobs[-1].get("created_at") if jobs else None
            old = isinstance(created, int | float) and created < since
            if not jobs or old or not page.get("has_more"):
                return ""
            after = {"after": last}

    def look(self, name: str) -> Look:
        """Asks for the job."""
        with self._calling(name) as client:
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
        full = bool(re.search("enqueued token limit", error, re.I))
        if state is BatchState.EXPIRED:
            error = error or "the batch expired before this request was answered"
        line = self._service.line(error)
        return Look(state=state, done=done, error=line, full=full, job=job)

    def fetch(self, look: Look) -> list[tuple[str, Any]]:
        """Downloads the answers and the errors."""
        found, self._adapts = [], True
        self._read_status()
        for field in ("output_file_id", "error_file_id"):
            file = look.job.get(field)
            if not isinstance(file, str) or not file:
                continue
            with self._calling(file) as client:
                content = client.files.content(file, timeout=_UPLOAD_S).content
            found += list(results(content, "custom_id"))
        return found

    def _read_status(self) -> None:
        """Asks when the model shuts down, unless the service was asked already."""
        if self._service.notice is not None:
            return
        try:
            with self._calling() as client:
                models = client.models.with_raw_response
                raw = models.retrieve(self._service.model, timeout=free_question.TIMEOUT_S)
                self._service.notice = shutdown_of(_body(raw))
        except (McrError, Unavailable) as error:
            if isinstance(error, Stopped):
                raise
            self._service.notice = ""

    def reply(self, result: Any, request: Request, index: int) -> Reply:
        """Reads a line of a result file as a reply to a single call is read."""
        response = result.get("response")
        response = response if isinstance(response, dict) else {}
        status, body = response.get("status_code"), response.get("body")
        if status == 200:
            return self._service.read(request, index, body, self._service.notice or "")
        error = body.get("error") if isinstance(body, dict) else result.get("error")
        error = _Failed(error if isinstance(error, dict) else {}, status)
        adapt, self._adapts = self._adapts, False
        return self._service.refused_in_batch(request, index, error, adapt=adapt)

    def close(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            client, self._client = self._client, None
            client.close()

    @contextlib.contextmanager
    def _calling(self, name: str = "") -> Iterator[Any]:
        """Gives the client, and turns its errors into those of a `BatchWire`.

        Args:
          name: the job or file that the call is about; "" for a call about none.
        """
        import openai

        if self._client is None:
            self._client = openai.OpenAI(**self._service.client_options())
        line = self._service.line
        try:
            yield self._client
        except Exception as error:
            if (stop := signal_in(error)) is not None:
                raise stop from None
            if isinstance(error, openai.APIStatusError):
                code, said = error.status_code, line(f"HTTP {error.status_code}: {error.message}")
                if code == 429 and error.code == NO_QUOTA:
                    raise self._service.no_quota(said) from None
                wait = connections.seconds(error.response.headers.get("retry-after", ""))
                missing, who = name if code == 404 else "", self._service.endpoint.name
                raise refused(who, code, said, missing=missing, wait=wait) from None
            if isinstance(error, openai.APIError):
                cause = error.__cause__ or error
                away = isinstance(cause, connections.errors()[1])
                said = line(f"{type(cause).__name__}: {cause}")
                raise Unavailable(said, refused=away) from None
            if isinstance(error, ValueError | RecursionError):
                raise Unavailable(line(f"unreadable reply: {error}")) from None
            raise


class _Failed:
    """Error of one request, with the fields of the client's `APIStatusError`."""

    def __init__(self, error: dict[str, Any], status: Any):
        self.status_code, self.code, self.param = status, error.get("code"), error.get("param")
        self.message = str(error.get("message") or self.code or "no reason given")


def _body(raw: Any) -> dict[str, Any]:
    body = json.loads(raw.http_response.content)
    if not isinstance(body, dict):
        raise ValueError("no JSON object")
    return body
