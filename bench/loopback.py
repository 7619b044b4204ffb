"""Gemini and chat completions on loopback in a separate process: fast, or with failures.

    with Loopback(delay=0.05) as url: ...
    with Loopback(faults=0.2, late=1.0) as url: ...

As Gemini it judges by a simple rule: a diagnosis is the same if both names are equal, a statement
is found if the trace contains it. At URL/v1 it answers every chat completion alike, and
URL/answered tells how often each question got a whole answer. The failure of a call depends on the
seed, the question and the number of earlier calls for that question, not on the order of calls.
"""

import argparse
import asyncio
import collections
import contextlib
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator

FAULTS = (
    *("429 with Retry-After", "429", "500", "503", "cut body", "cut JSON", "wrong schema"),
    *("SAFETY", "MAX_TOKENS", "late"),
)
# A completion that is filtered or cut is an answer, so chat completions have none of these faults.
CHAT_FAULTS = (
    *("429 with Retry-After", "429", "500", "503", "cut body", "cut JSON", "no choice", "late"),
)
_REASONS = {
    404: "Not Found",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


@contextlib.contextmanager
def Loopback(
    *, delay: float = 0.0, faults: float = 0.0, late: float = 1.0, seed: int = 0, port: int = 0
) -> Iterator[str]:
    """Runs the server; yields its URL.

    Args:
      delay: seconds before each reply.
      faults: share of failing calls.
      late: seconds of a late reply.
      seed: random seed of the failures.
      port: port of the server; 0 takes a free one.
    """
    flags = {"delay": delay, "faults": faults, "late": late, "seed": seed, "port": port}
    command = [sys.executable, __file__, *(f"--{name}={value}" for name, value in flags.items())]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


class _Server:
    def __init__(self, flags: argparse.Namespace):
        self._flags, self._calls = flags, collections.Counter()
        self._answered = collections.Counter()

    async def serve(self) -> None:
        server = await asyncio.start_server(
            self._connection, "127.0.0.1", self._flags.port, backlog=1024
        )
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1]) if length else 0)
                path = head.split()[1].decode()
                if not body:
                    self._tell(writer, path)
                    continue
                await asyncio.sleep(self._flags.delay)
                reply = self._chat if path.endswith("/chat/completions") else self._reply
                whole = await reply(writer, body)
                await writer.drain()
                if not whole:
                    break
        writer.close()

    async def _reply(self, writer: asyncio.StreamWriter, body: bytes) -> bool:
        """Writes the reply to one call; returns False if the connection must end."""
        call = json.loads(body)
        prompt = call["contents"][0]["parts"][0]["text"]
        fault = self._fault(prompt, FAULTS)
        text = judgement(call, prompt)
        if _is_error(fault):
            _write_error(writer, fault)
            return True
        if fault == "late":
            await asyncio.sleep(self._flags.late)
        finish = fault if fault in ("SAFETY", "MAX_TOKENS") else "STOP"
        if fault in ("cut JSON", "MAX_TOKENS"):
            text = text[:-2]
        if fault == "wrong schema":
            text = '{"verdict": "yes"}'
        reply = json.dumps(_candidate(text, finish))
        if fault == "cut body":
            _write(writer, reply, missing=100)
            return False
        _write(writer, reply)
        return True

    async def _chat(self, writer: asyncio.StreamWriter, body: bytes) -> bool:
        """Writes the reply to a chat completion, as `_reply`."""
        call = json.loads(body)
        question = json.dumps([call["messages"], call.get("seed")])
        fault = self._fault(question, CHAT_FAULTS)
        if _is_error(fault):
            _write_error(writer, fault)
            return True
        if fault == "late":
            await asyncio.sleep(self._flags.late)
        reply = json.dumps(_completion([] if fault == "no choice" else [_CHOICE]))
        if fault == "cut JSON":
            reply = reply[:-2]
        if fault == "cut body":
            _write(writer, reply, missing=100)
            return False
        if not fault:
            self._answered[question] += 1
        _write(writer, reply)
        return True

    def _tell(self, writer: asyncio.StreamWriter, path: str) -> None:
        """Answers a GET: how many questions got one whole answer, how many two, and so on."""
        if path == "/answered":
            times = collections.Counter(self._answered.values())
            _write(writer, json.dumps({"calls": self._calls.total(), "times": times}))
        else:
            _write(writer, json.dumps({"error": {"message": "no such route"}}), 404)

    def _fault(self, prompt: str, faults: tuple[str, ...]) -> str:
        self._calls[prompt] += 1
        drawn = hashlib.sha256(f"{self._flags.seed}/{self._calls[prompt]}/{prompt}".encode())
        number = int.from_bytes(drawn.digest()[:8], "big") / 2**64
        if number >= self._flags.faults:
            return ""
        return faults[int(number / self._flags.faults * len(faults))]


_CHOICE = {
    "index": 0,
    "message": {
        "role": "assistant",
        "content": "<think>It hums.</think><answer>Brindle rime</answer>",
    },
    "finish_reason": "stop",
}


def _completion(choices: list[dict[str, object]]) -> dict[str, object]:
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return {"id": "c", "object": "chat.completion", "choices": choices, "usage": usage}


def _is_error(fault: str) -> bool:
    return fault[:3] in ("429", "500", "503")


def _write_error(writer: asyncio.StreamWriter, fault: str) -> None:
    code = int(fault[:3])
    error = {"code": code, "message": f"injected {code}", "status": "INJECTED"}
    extra = "Retry-After: 0.01\r\n" if "Retry-After" in fault else ""
    _write(writer, json.dumps({"error": error}), code, extra)


def _candidate(text: str, finish: str) -> dict[str, object]:
    content = {"role": "model", "parts": [{"text": text}]}
    usage = {"promptTokenCount": 100, "candidatesTokenCount": 10, "totalTokenCount": 110}
    candidate = {"content": content, "finishReason": finish, "index": 0}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "loopback-1"}


def _write(
    writer: asyncio.StreamWriter, body: str, code: int = 200, extra: str = "", missing: int = 0
) -> None:
    content = body.encode()
    head = (
        f"HTTP/1.1 {code} {_REASONS.get(code, 'OK')}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content) + missing}\r\n{extra}\r\n"
    )
    writer.write(head.encode() + content)


def judgement(call: dict, prompt: str) -> str:
    """Returns the verdict on a judge's prompt, as JSON."""
    if call["generationConfig"]["responseSchema"]["type"] == "OBJECT":
        same = _inside("reference", prompt) == _inside("predicted", prompt)
        return json.dumps({"same": same})
    trace, verdict = _inside("trace", prompt), []
    for number, statement in re.findall(r"(?m)^(\d+)\. (.*)$", _inside("statements", prompt)):
        quotes = [statement] if statement in trace else []
        verdict.append({"number": int(number), "quotes": quotes})
    return json.dumps(verdict)


def _inside(tag: str, text: str) -> str:
    return text.rpartition(f"<{tag}>\n")[2].partition(f"\n</{tag}>")[0]


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name, kind in (("delay", float), ("faults", float), ("late", float), ("seed", int)):
        parser.add_argument(f"--{name}", type=kind, default=0)
    parser.add_argument("--port", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(_Server(_flags()).serve())
