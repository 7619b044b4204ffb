"""Gemini server on loopback: generateContent, batches and files; records calls, fails as scripted.

    with GeminiServer() as server:
        server.then(server.error(429, "slow down", retry_delay="0s"), server.says("hello"))

Calls get the scripted replies in turn. After these a rule answers judge prompts: a diagnosis is the
same if the texts are equal, a statement is found or kept if the trace contains it, and nothing was
added.
"""

import collections
import dataclasses
import http.server
import json
import re
import threading
from collections.abc import Mapping
from typing import Any

USAGE = {
    "promptTokenCount": 11,
    "candidatesTokenCount": 7,
    "thoughtsTokenCount": 5,
    "cachedContentTokenCount": 3,
    "totalTokenCount": 23,
}


@dataclasses.dataclass(frozen=True)
class Call:
    """One request as it arrived."""

    path: str
    headers: Mapping[str, str]  # names in lower case
    body: Any

    @property
    def text(self) -> str:
        """All text of the conversation's turns."""
        return "".join(p["text"] for turn in self.body["contents"] for p in turn["parts"])


@dataclasses.dataclass
class Job:
    """One batch job.

    Attributes:
      name: at the service.
      nonce: as the client gave it, in displayName or in metadata.
      requests: key and body of every request.
      inline: True if the requests came inside the submission.
      ends: state in which it ends.
      polls: number of looks at it so far.
      results: key and result of every request, once it has ended.
    """

    name: str
    nonce: str
    requests: list[tuple[str, Any]]
    inline: bool
    ends: str
    polls: int = 0
    results: list[tuple[str, Any]] | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """Scripted reaction to one call: a reply, or a dropped or hanging connection."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fault: str = ""  # "drop", "hang", "cut", or "rule": a judgement by the rule


class GeminiServer:
    """The server; a context manager.

    Attributes:
      url: for GOOGLE_GEMINI_BASE_URL.
      key: the key a test sets; any key is let in.
      calls: the calls so far.
      most_in_flight: the most calls that were being answered at a time.
      connections: that were opened.
      jobs: the batch jobs, in the order of their submission.
      files: uploaded and made files by name.
      uploads: number of uploads.
      polls_before_end: looks at a job that find it running.
      job_ends: states in which the next jobs end; then they succeed.
      spoil: changes the results of a job, a list of (key, result).
      held: step of a batch whose reply is held back for ever: "upload", "submit", "poll" or
        "download". The server does the step; `reached` is set.
      listed: False leaves new jobs out of the list.
      models: names in the list of models; None leaves this route out.
      refuses_key: the answer to every question and call, for a key that is refused.
      asked: paths of the questions for models.
    """

    key = "loopback-key-0123456789"

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._script: collections.deque[Answer] = collections.deque()
        self._lock, self._closing = threading.Lock(), threading.Event()
        self.connections = self.most_in_flight = self._in_flight = 0
        self._gathered: threading.Barrier | None = None
        self.jobs: list[Job] = []
        self.files: dict[str, bytes] = {}
        self.uploads, self.polls_before_end = 0, 1
        self.job_ends: collections.deque[str] = collections.deque()
        self.spoil: Any = lambda results: results
        self.held, self.reached, self.listed = "", threading.Event(), True
        self.models: list[str] | None = None
        self.refuses_key: Answer | None = None
        self.asked: list[str] = []
        outer = self

        class Handler(_Handler):
            server_of_tests = outer

        self._http = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "GeminiServer":
        # The poll is how long closing takes.
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()

    def then(self, *answers: Answer) -> None:
        """Scripts the next replies."""
        self._script.extend(answers)

    def says(
        self, text: str = "", *, finish: str | None = "STOP", thoughts: str = "", **more: Any
    ) -> Answer:
        """A 200 with one candidate; `more` goes into the reply's top level."""
        parts = [{"text": thoughts, "thought": True}] if thoughts else []
        parts += [{"text": text}] if text else []
        candidate: dict[str, Any] = {"index": 0}
        if parts:
            candidate["content"] = {"role": "model", "parts": parts}
        if finish is not None:
            candidate["finishReason"] = finish
        return self.replies({"candidates": [candidate], "usageMetadata": USAGE, **more})

    def replies(self, body: Any) -> Answer:
        """A 200 with this JSON body."""
        return Answer(body=json.dumps({"modelVersion": "loopback-1", **body}).encode())

    def raw(self, body: bytes, status: int = 200) -> Answer:
        """Any bytes."""
        return Answer(status=status, body=body)

    def error(
        self,
        code: int,
        message: str,
        *,
        status: str = "FAILED",
        retry_delay: str = "",
        retry_after: str = "",
        quota: str = "",
    ) -> Answer:
        """An error as Google's services write it; `quota` is the id of one that is used up."""
        error: dict[str, Any] = {"code": code, "message": message, "status": status}
        kind, details = "type.googleapis.com/google.rpc.", []
        if quota:
            violation = {"quotaMetric": "requests", "quotaId": quota, "quotaValue": "250"}
            details.append({"@type": kind + "QuotaFailure", "violations": [violation]})
        if retry_delay:
            details.append({"@type": kind + "RetryInfo", "retryDelay": retry_delay})
        if details:
            error["details"] = details
        headers = {"Retry-After": retry_after} if retry_after else {}
        return Answer(status=code, body=json.dumps({"error": error}).encode(), headers=headers)

    def drops(self) -> Answer:
        """The connection ends without a reply."""
        return Answer(fault="drop")

    def by_rule(self) -> Answer:
        """Returns the answer by rule, used when nothing is scripted."""
        return Answer(fault="rule")

    def wait(self, seconds: float) -> None:
        """Holds a call, but not longer than the server is there."""
        self._closing.wait(seconds)

    def cuts(self) -> Answer:
        """The connection ends in the middle of a reply's body."""
        return Answer(body=b'{"candidates": [', fault="cut")

    def hangs(self) -> Answer:
        """No reply comes before the server closes."""
        return Answer(fault="hang")

    def gather(self, calls: int) -> None:
        """Lets calls wait until so many of them have arrived, again and again."""
        self._gathered = threading.Barrier(calls, timeout=30)

    def _take(self, call: Call) -> Answer:
        with self._lock:
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        if self._gathered is not None:
            self._gathered.wait()
        with self._lock:
            self._in_flight -= 1
            self.calls.append(call)
            answer = self._script.popleft() if self._script else self.by_rule()
        if self.refuses_key:
            return self.refuses_key
        return self.says(self._judgement(call)) if answer.fault == "rule" else answer

    def _judgement(self, call: Call) -> str:
        return judgement(call)

    def _post(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Answers a POST: a route of batches, or a single call."""
        return self._post_batch(path, headers, body) or self._take(
            Call(path, headers, json.loads(body))
        )

    def _get(self, path: str) -> Answer:
        return self._get_batch(path) or self._get_models(path)

    def _get_models(self, path: str) -> Answer:
        """Answers the question for a model or for their list."""
        self.asked.append(path)
        name = path.partition("?")[0].partition("/models/")[2]
        if self.refuses_key or self.models is None:
            return self.refuses_key or self.error(404, f"no such route: {path}")
        if name and name not in self.models:
            return self.error(404, f"the model {name} does not exist")
        return self.raw(json.dumps(self._model(name) if name else self._list()).encode())

    def _model(self, name: str) -> Any:
        return {"name": f"models/{name}"}

    def _list(self) -> Any:
        return {"models": [self._model(name) for name in self.models]}

    def release(self) -> None:
        """Lets later steps of batches pass."""
        self.held = ""
        self.reached.clear()

    def _step(self, name: str, answer: Answer) -> Answer:
        """Returns the answer, or holds it back for ever if the step is `held`."""
        if self.held != name:
            return answer
        self.reached.set()
        return self.hangs()

    def _new_job(self, name: str, nonce: str, requests: list[Any], inline: bool) -> Job:
        with self._lock:
            ends = self.job_ends.popleft() if self.job_ends else "SUCCEEDED"
            job = Job(f"{name}{len(self.jobs) + 1}", nonce, requests, inline, ends)
            self.jobs.append(job)
        return job

    def _job(self, name: str) -> Job | None:
        return next((job for job in self.jobs if job.name == name), None)

    def _looked_at(self, job: Job) -> bool:
        """Counts a look; returns whether the job has ended, with its results."""
        job.polls += 1
        if job.polls <= self.polls_before_end:
            return False
        if job.results is None:
            found = [(key, self._result(body)) for key, body in job.requests]
            job.results = self.spoil(found) if job.ends in ("SUCCEEDED", "EXPIRED") else []
        return True

    def _result(self, body: Any) -> Any:
        with self._lock:
            answer = self._script.popleft() if self._script else self.by_rule()
        if answer.fault == "rule":
            answer = self.says(self._judgement(Call("", {}, body)))
        found = json.loads(answer.body)
        return {"error": found["error"]} if answer.status != 200 else {"response": found}

    def _post_batch(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer | None:
        if path.startswith("/upload/v1beta/files"):
            with self._lock:
                self.uploads += 1
            url = f"{self.url}/to/files/in{self.uploads}"
            return Answer(body=b"{}", headers={"X-Goog-Upload-URL": url})
        if path.startswith("/to/files/"):
            name = path.removeprefix("/to/")
            self.files[name] = self.files.get(name, b"") + body  # large files come in chunks
            if "finalize" not in headers["x-goog-upload-command"]:
                return Answer(body=b"{}", headers={"X-Goog-Upload-Status": "active"})
            made = json.dumps({"file": {"name": name, "uri": self.url, "mimeType": "x"}}).encode()
            return self._step(
                "upload", Answer(body=made, headers={"X-Goog-Upload-Status": "final"})
            )
        if not path.endswith(":batchGenerateContent"):
            return None
        batch = json.loads(body)["batch"]
        source = batch["inputConfig"]
        if "fileName" in source:
            lines = [json.loads(line) for line in self.files[source["fileName"]].splitlines()]
            requests = [(line["key"], line["request"]) for line in lines]
        else:
            requests = [
                (r["metadata"]["key"], r["request"]) for r in source["requests"]["requests"]
            ]
        if self._script and self._script[0].fault == "refuse":
            return dataclasses.replace(self._script.popleft(), fault="")
        job = self._new_job("batches/b", batch["displayName"], requests, "requests" in source)
        return self._step("submit", Answer(body=json.dumps(self._operation(job)).encode()))

    def refuses_job(self, code: int, message: str) -> Answer:
        """Returns an error with which the next submission is refused."""
        return dataclasses.replace(self.error(code, message), fault="refuse")

    def _operation(self, job: Job, done: bool = False) -> Any:
        state = f"BATCH_STATE_{job.ends if done else 'RUNNING'}"
        stats = {"requestCount": str(len(job.requests)), "successfulRequestCount": "1"}
        facts = {"state": state, "displayName": job.nonce, "batchStats": stats}
        made = {"name": job.name, "metadata": facts, "done": done}
        if done and job.ends == "FAILED":
            return made | {"error": {"code": 13, "message": "the job broke"}}
        if done and job.inline:
            inlined = [
                {**result, **({"metadata": {"key": key}} if key else {})}
                for key, result in job.results
            ]
            facts["output"] = {"inlinedResponses": {"inlinedResponses": inlined}}
        elif done:
            name = job.name.replace("batches/", "files/out-")
            lines = [json.dumps({**({"key": key} if key else {}), **r}) for key, r in job.results]
            self.files[name] = "\n".join(lines).encode()
            facts["output"] = {"responsesFile": name}
        return made

    def _get_batch(self, path: str) -> Answer | None:
        route, _, _ = path.partition("?")
        if route == "/v1beta/batches":
            jobs = [self._operation(job) for job in self.jobs if self.listed]
            return Answer(body=json.dumps({"operations": jobs}).encode())
        if route.startswith("/v1beta/batches/"):
            job = self._job(route.removeprefix("/v1beta/"))
            if job is None:
                return self.error(404, "no such batch", status="NOT_FOUND")
            made = self._operation(job, self._looked_at(job))
            return self._step("poll", Answer(body=json.dumps(made).encode()))
        if route.endswith(":download"):
            name = route.removeprefix("/v1beta/").removesuffix(":download")
            return self._step("download", Answer(body=self.files[name]))
        return None

    def _wait_for_close(self) -> None:
        self._closing.wait()


def judgement(call: Call) -> str:
    """The judge's reply, by the form of the schema asked for."""
    schema = call.body["generationConfig"].get("responseSchema")
    if schema is None:
        return "<think>\nIt hums.\n</think>\n<answer>Brindle rime</answer>"
    if "same" in schema.get("properties", {}):
        same = _inside("reference", call.text) == _inside("predicted", call.text)
        return json.dumps({"same": same})
    trace, verdict = _inside("trace", call.text), []
    distortion = schema["type"] == "OBJECT"
    for number, statement in re.findall(r"(?m)^(\d+)\. (.*)$", _inside("statements", call.text)):
        there = statement in trace
        answer = {"quotes": [statement] if there else []}
        if distortion:
            answer = {"verdict": "kept" if there else "missing", "quote": there * statement}
        verdict.append({"number": int(number), **answer})
    return json.dumps({"statements": verdict, "added": []} if distortion else verdict)


def _inside(tag: str, text: str) -> str:
    return re.search(rf"(?s).*<{tag}>\n(.*)\n</{tag}>", text)[1]


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # connections that are opened at the same moment

    def handle_error(self, *unused: object) -> None:
        """A client that has gone is no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of_tests: GeminiServer

    def setup(self) -> None:
        super().setup()
        with self.server_of_tests._lock:
            self.server_of_tests.connections += 1

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(length)
        self._answer(self.server_of_tests._post(self.path, headers, body))

    def do_GET(self) -> None:
        self._answer(self.server_of_tests._get(self.path))

    def _answer(self, answer: Answer) -> None:
        if answer.fault == "hang":
            self.server_of_tests._wait_for_close()
        self.close_connection = bool(answer.fault)
        if answer.fault in ("drop", "hang"):
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        missing = 100 if answer.fault == "cut" else 0
        self.send_header("Content-Length", str(len(answer.body) + missing))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, *unused: object) -> None:
        """Keeps the test's output clean."""
