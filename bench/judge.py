"""Judged calls per second against a bare asynchronous google-genai loop with the same client.

Ours makes the requests, limits the rate, parses the verdicts and writes them into a ledger; the
bare loop drops the replies. Both call a local server that replies after 50 ms, with 64 calls in
flight. `ratio` is our share of the bare loop's rate.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx2
from google import genai
from google.genai import types

from mcr_jax import prompts, synthetic
from mcr_jax.generate import driver
from mcr_jax.generate.gemini import API_VERSION, Gemini
from mcr_jax.generate.ledger import Ledger, RowKey, Scope
from mcr_jax.generate.questions import Reader
from mcr_jax.judges import diagnosis

from . import line
from .loopback import Loopback

MODEL = "gemini-3.5-flash-lite"
SCOPE = Scope("diagnosis", "sft", f"gemini:{MODEL}")


def jobs(count: int) -> list[driver.Job]:
    """Returns `count` different diagnosis questions."""
    prompt, cases = prompts.load(diagnosis.PROMPT), synthetic.cases(0, {"test": 50})
    found = []
    for i in range(count):
        case = cases[i % len(cases)]
        row = RowKey(
            stage="diagnosis", case=case.fingerprint, model="sft", sample=i, judge=SCOPE.judge
        )
        request = diagnosis.request(f"{i}", case, f"Predicted disease {i}", prompt)
        found.append(driver.Job(row=row, request=request))
    return found


def ours(work: list[driver.Job], in_flight: int) -> float:
    """Returns the seconds of the driver, the parser and the ledger."""
    reader = Reader(parse=diagnosis.parse, name=diagnosis.READING)
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "l.sqlite") as ledger:
        generator, start = Gemini(MODEL, concurrency=in_flight), time.perf_counter()
        summary = driver.run(SCOPE, work, generator, ledger, reader=reader)
        seconds = time.perf_counter() - start
        assert summary.settled == len(work) == ledger.count()
    return seconds


def bare(work: list[driver.Job], in_flight: int) -> float:
    """Returns the seconds of the same calls by the same client alone."""
    request = work[0].request
    config = types.GenerateContentConfig(
        response_mime_type="application/json",
        response_schema=request.schema,
        max_output_tokens=request.max_tokens,
        seed=0,
    )
    texts = iter([job.request.messages[0]["content"] for job in work])

    async def every() -> None:
        limits = httpx2.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
        async with httpx2.AsyncClient(limits=limits) as http:
            options = types.HttpOptions(
                api_version=API_VERSION, timeout=60_000, httpx_async_client=http
            )
            client = genai.Client(http_options=options).aio

            async def one_after_another() -> None:
                for text in texts:
                    contents = [{"role": "user", "parts": [{"text": text}]}]
                    await client.models.generate_content(
                        model=MODEL, contents=contents, config=config
                    )

            await asyncio.gather(*(one_after_another() for _ in range(in_flight)))

    start = time.perf_counter()
    asyncio.run(every())
    return time.perf_counter() - start


def main() -> None:
    """Prints one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--in_flight", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    flags = parser.parse_args()
    work, times = jobs(flags.calls), ([], [])
    with Loopback(delay=0.05) as url:
        os.environ.update(GOOGLE_GEMINI_BASE_URL=url, GEMINI_API_KEY="loopback")
        for run in range(flags.runs + 1):
            for call, into in zip((ours, bare), times, strict=True):
                seconds = call(work, flags.in_flight)
                if run:  # the first run warms up
                    into.append(seconds)
    rates = [flags.calls / statistics.median(seconds) for seconds in times]
    line(
        bench="judge",
        ours=rates[0],
        peer=rates[1],
        unit="calls/s",
        shape=f"{flags.calls} calls, {flags.in_flight} in flight, 50 ms replies",
        device=f"{os.cpu_count()} cores, Python {sys.version.split()[0]}",
    )


if __name__ == "__main__":
    main()
