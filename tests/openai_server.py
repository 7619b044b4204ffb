"""Chat completions on loopback: the wire of OpenAI, vLLM and DeepSeek, with scripted faults.

It answers as tests/gemini_server.py does: scripted replies first, then judge prompts by a plain
rule and any other prompt with a fixed completion. `refuses` names parameters that it answers with
an error 400, as endpoints do that lack them.
"""

import dataclasses
import json
import re
import time
from typing import Any

from gemini_server import Answer, Call, GeminiServer, _inside

USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 12,
    "total_tokens": 23,
    "prompt_tokens_details": {"cached_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 5},
}


class OpenAIServer(GeminiServer):
    """The server; a context manager.

    Attributes:
      refuses: parameters that it does not take: each is an error 400 that names it.
      purposes: of the uploaded files.
      shutdown_date: of every model; None leaves the route /models out.
    """

    key = "sk-loopback-0123456789"

    def __init__(self) -> None:
        super().__init__()
        self.refuses: set[str] = set()
        self.shutdown_date: str | None = None
        self.purposes: list[bytes] = []
        self.url += "/v1"

    def says(
        self,
        text: str = "",
        *,
        finish: str | None = "stop",
        thoughts: str = "",
        field: str = "reasoning",
        logprobs: Any = None,
        **more: Any,
    ) -> Answer:
        """Returns a 200 with one choice; `more` goes into its message."""
        message = {"role": "assistant", "content": text or None, **more}
        if thoughts:
            message[field] = thoughts
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": finish}
        if logprobs is not None:
            choice["logprobs"] = {"content": [{"token": "t", "logprob": p} for p in logprobs]}
        return self.replies({"choices": [choice], "usage": USAGE})

    def replies(self, body: Any) -> Answer:
        """Returns a 200 with this JSON body."""
        named = {"id": "c", "object": "chat.completion", "created": 1, "model": "loopback-1"}
        return Answer(body=json.dumps({**named, **body}).encode())

    def error(self, status: int, message: str, *, retry_after: str = "", **fields: str) -> Answer:
        """Returns an error as OpenAI writes it; `fields` are such as code and param."""
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        headers = {"Retry-After": retry_after} if retry_after else {}
        body = json.dumps({"error": error | fields}).encode()
        return Answer(status=status, body=body, headers=headers)

    def _result(self, body: Any) -> Any:
        with self._lock:
            answer = self._script.popleft() if self._script else self.by_rule()
        if unknown := self.refuses & body.keys():
            name = min(unknown)
            answer = self.error(400, f"Unsupported parameter: '{name}'", param=name)
        elif answer.fault == "rule":
            answer = self.says(self._judgement(Call("", {}, body)))
        return {"status_code": answer.status, "body": json.loads(answer.body)}

    def _post_batch(self, path: str, headers: Any, body: bytes) -> Answer | None:
        if path == "/v1/files":
            boundary = re.search(r"boundary=(\S+)", headers["content-type"])[1].encode()
            parts = [part.partition(b"\r\n\r\n") for part in body.split(b"--" + boundary)]
            (content,) = (text for head, _, text in parts if b"filename=" in head)
            self.purposes.append(
                next(text.strip() for head, _, text in parts if b'name="purpose"' in head)
            )
            with self._lock:
                self.uploads += 1
            name = f"file-in{self.uploads}"
            self.files[name] = content.removesuffix(b"\r\n")
            return self._step("upload", self.raw(json.dumps({"id": name}).encode()))
        if path != "/v1/batches":
            return None
        asked = json.loads(body)
        assert (asked["endpoint"], asked["completion_window"]) == ("/v1/chat/completions", "24h")
        if self._script and self._script[0].fault == "refuse":
            return dataclasses.replace(self._script.popleft(), fault="")
        lines = [json.loads(line) for line in self.files[asked["input_file_id"]].splitlines()]
        requests = [(line["custom_id"], line["body"]) for line in lines]
        job = self._new_job("batch_", asked["metadata"]["mcr_batch"], requests, inline=False)
        return self._step("submit", self.raw(json.dumps(self._batch(job)).encode()))

    def _batch(self, job: Any, done: bool = False) -> Any:
        """Returns a job as OpenAI describes it; writes its files of results when it is done."""
        ends = {"SUCCEEDED": "completed"}.get(job.ends, job.ends.lower())
        made = {
            "id": job.name,
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "status": ends if done else "in_progress",
            "metadata": {"mcr_batch": job.nonce},
            "created_at": int(time.time()),
            "request_counts": {"total": len(job.requests), "completed": 1, "failed": 0},
        }
        if done and job.ends == "FAILED":
            errors = [{"code": "token_limit", "message": "Enqueued token limit reached"}]
            return made | {"errors": {"object": "list", "data": errors}}
        if done:
            for field, good in (("output_file_id", True), ("error_file_id", False)):
                lines = [
                    json.dumps({"id": "r", **({"custom_id": key} if key else {}), "response": r})
                    for key, r in job.results
                    if (r["status_code"] == 200) is good
                ]
                if lines:
                    made[field] = f"file-{field}-{job.name}"
                    self.files[made[field]] = "\n".join(lines).encode()
        return made

    def _get_batch(self, path: str) -> Answer | None:
        route, _, query = path.partition("?")
        if route == "/v1/batches":
            jobs = [job for job in reversed(self.jobs) if self.listed]
            after = re.search(r"after=(\w+)", query)
            first = [job.name for job in jobs].index(after[1]) + 1 if after else 0
            page = [self._batch(job) for job in jobs[first : first + 2]]  # two to a page
            body = {"object": "list", "data": page, "has_more": len(jobs) > first + 2}
            return self.raw(json.dumps(body).encode())
        if route.startswith("/v1/batches/"):
            job = self._job(route.removeprefix("/v1/batches/"))
            if job is None:
                return self.error(404, "No batch found")
            made = self._batch(job, self._looked_at(job))
            return self._step("poll", self.raw(json.dumps(made).encode()))
        if route.startswith("/v1/files/"):
            name = route.removeprefix("/v1/files/").removesuffix("/content")
            return self._step("download", self.raw(self.files[name]))
        return None

    def _get(self, path: str) -> Answer:
        if (answer := self._get_batch(path)) is not None:
            return answer
        if self.shutdown_date is not None and "/models/" in path:
            self.asked.append(path)
            return self.raw(json.dumps(self._model(path.rpartition("/")[2])).encode())
        return self._get_models(path)

    def _model(self, name: str) -> Any:
        date = {"shutdown_date": self.shutdown_date} if self.shutdown_date is not None else {}
        return {"id": name, "object": "model", "owned_by": "loopback", **date}

    def _list(self) -> Any:
        return {"object": "list", "data": [self._model(name) for name in self.models]}

    def _take(self, call: Call) -> Answer:
        unknown = self.refuses & call.body.keys()
        if not unknown:
            return super()._take(call)
        with self._lock:
            self.calls.append(call)
        name = min(unknown)
        return self.error(400, f"Unsupported parameter: '{name}'", param=name)

    def _judgement(self, call: Call) -> str:
        text = "".join(message["content"] for message in call.body["messages"])
        if "<predicted>" in text:
            return json.dumps({"same": _inside("reference", text) == _inside("predicted", text)})
        if "<statements>" in text:
            trace = _inside("trace", text)
            numbered = re.findall(r"(?m)^(\d+)\. (.*)$", _inside("statements", text))
            found = [{"number": int(n), "quotes": [s] * (s in trace)} for n, s in numbered]
            return json.dumps({"reply": found})
        return "<think>\nIt hums.\n</think>\n<answer>Brindle rime</answer>"
