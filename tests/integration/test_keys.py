"""No key reaches a file, an output or a process list, even if a service repeats it."""

import base64
import contextlib
import json
import pathlib
import subprocess
import urllib.parse

import pytest
from processes import read

pytestmark = pytest.mark.slow

KEYS = {
    "OPENAI_API_KEY": "sk-loop/back+openai=0123456789",
    "GEMINI_API_KEY": "AIza/loop+back_gemini=0123456789",
    "OURS_KEY": "ours/loop+back=0123456789",
}


def repeated(key: str) -> str:
    """Returns a key as servers repeat it: as it is, in JSON, in a URL, in base64."""
    coded = [base64.b64encode(before + key.encode()).decode() for before in (b"", b":", b"me")]
    return " ".join([key, urllib.parse.quote(key), urllib.parse.quote(key, ""), *coded])


def parts(key: str) -> list[bytes]:
    """Returns the first half of a key in each of these forms: an error may be cut within a key."""
    half = key[: len(key) // 2].encode()
    coded = (base64.b64encode(bytes(before) + half)[4 if before else 0 : -4] for before in range(3))
    quoted = (urllib.parse.quote(half, safe).encode() for safe in ("/", ""))
    return [half, half.replace(b"/", b"\\/"), *quoted, *coded]


def leaks(content: bytes) -> list[str]:
    return [name for name, key in KEYS.items() if any(part in content for part in parts(key))]


class Watched:
    """Runs commands with all keys; keeps outputs and the command lines of their processes."""

    def __init__(self, mcr, env):
        self.mcr, self.env, self.seen = mcr, env, []

    def flags(self, workdir, data, openai, models) -> list[str]:
        fields = {
            "data.data_dir": data,
            "data.eval_cases": 2,
            "sample.n": 4,
            "sample.models": models,
            "sample.concurrency": 1,
            "endpoints": f"ours={openai.url} OURS_KEY",
            "score.resamples": 20,
        }
        fields = [f"--config.{name}={value}" for name, value in fields.items()]
        return ["--config=eval", f"--workdir={workdir}", *fields]

    def check(self) -> None:
        """Searches all files and all that was seen."""
        files = [path for path in self.mcr.folder.rglob("*") if path.is_file()]
        assert "ledger.sqlite" in {path.name for path in files}
        found = {str(path): leaks(path.read_bytes()) for path in files}
        found |= {content.decode(errors="replace"): leaks(content) for content in self.seen}
        assert not {place: names for place, names in found.items() if names}

    def __call__(self, status: int, *args: object) -> str:
        process = self.mcr.start(*args, **self.env)
        lines, out = set(), None
        while out is None:
            for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):  # it has ended
                    lines.add(path.read_bytes())
            for log in self.mcr.folder.glob("*/ledger.sqlite-wal"):
                with contextlib.suppress(OSError):
                    lines.add(log.read_bytes())
            with contextlib.suppress(subprocess.TimeoutExpired):
                out, _ = process.communicate(timeout=0.05)
        assert process.returncode == status, out
        assert any(str(args[0]).encode() in line for line in lines)
        assert "Traceback" not in out
        self.seen += [*lines, out.encode()]
        return out


@pytest.fixture
def watched(mcr, openai, gemini) -> Watched:
    urls = {"OPENAI_BASE_URL": openai.url, "GOOGLE_GEMINI_BASE_URL": gemini.url}
    return Watched(mcr, {**KEYS, **urls, "OPENAI_LOG": "debug", "PYTHONASYNCIODEBUG": "1"})


@pytest.mark.parametrize("before", [0, 280])
def test_a_service_that_repeats_a_key_in_all_it_says_leaks_it_nowhere(
    watched, clinic_data, openai, gemini, before
):
    """An error is cut to one short line: `before` characters put the cut at and within a key."""
    for spec, server, name in (
        ("openai:m", openai, "OPENAI_API_KEY"),
        ("ours:m", openai, "OURS_KEY"),
        ("gemini:gemini-2.5-flash", gemini, "GEMINI_API_KEY"),
    ):
        said = "x" * before + repeated(KEYS[name])
        error = {"message": said, "status": said}
        server.then(server.error(500, said), server.drops(), server.replies({"error": error}))
        if server is openai:
            server.then(server.says("x", finish=said), server.says("x", refusal=said))
            server.then(server.replies({**json.loads(server.says("x").body), "model": said}))
        else:
            server.then(server.says("x", finish=said), server.says("x", modelVersion=said))
            server.then(server.says(finish=None, promptFeedback={"blockReason": said}))
        server.then(server.error(401, said))
        flags = watched.flags(spec.partition(":")[0], clinic_data, openai, f"x={spec}")
        out = watched(1, "sample", *flags)
        assert "HTTP 401" in out
        watched(0, "status", flags[1])
    watched.check()


def test_an_evaluation_writes_and_prints_no_key(watched, clinic_data, openai):
    models = "o=openai:m,g=gemini:gemini-2.5-flash,e=ours:m"
    judges = "--config.judge.models=openai:j,gemini:gemini-2.5-flash,ours:j"
    watched(0, "eval", *watched.flags("w", clinic_data, openai, models), judges)
    for command in ("status", "verify"):
        watched(0, command, "--workdir=w")
    watched(0, "doctor")
    for command, out in (("export-completions", "o.jsonl"), ("export-log", "o.eval")):
        watched(0, command, "--workdir=w", "--model=o", f"--out={out}")
    assert read(watched.mcr.folder / "w" / "results.json")["models"].keys() == {"o", "g", "e"}
    watched.check()
