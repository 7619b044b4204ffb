"""Chat completions on loopback: the wire of OpenAI, vLLM and DeepSeek, with scripted faults.

It answers as tests/gemini_server.py does: scripted replies first, then judge prompts by a plain
rule and any other prompt with a fixed completion. `refuses` names parameters that it answers with
an error 400, as endpoints do that lack them.
"""

import json
import re
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
      shutdown_date: of every model; None leaves the route /models out.
    """

    key = "sk-loopback-0123456789"

    def __init__(self) -> None:
        super().__init__()
        self.refuses: set[str] = set()
        self.shutdown_date: str | None = None
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

    def _get(self, path: str) -> Answer:
        if self.shutdown_date is None or not path.startswith("/v1/models/"):
            return self.error(404, "no such route")
        model = {"id": path.rpartition("/")[2], "object": "model", "owned_by": "loopback"}
        return Answer(body=json.dumps(model | {"shutdown_date": self.shutdown_date}).encode())

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
