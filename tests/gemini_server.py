"""Gemini server on loopback: implements generateContent, records calls, fails as scripted.

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
    """

    key = "loopback-key-0123456789"

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._script: collections.deque[Answer] = collections.deque()
        self._lock, self._closing = threading.Lock(), threading.Event()
        self.connections = self.most_in_flight = self._in_flight = 0
        self._gathered: threading.Barrier | None = None
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
        return self.says(self._judgement(call)) if answer.fault == "rule" else answer

    def _judgement(self, call: Call) -> str:
        return judgement(call)

    def _get(self, path: str) -> Answer:
        return self.error(404, f"no such route: {path}")

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
        call = Call(self.path, headers, json.loads(self.rfile.read(length)))
        self._answer(self.server_of_tests._take(call))

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
