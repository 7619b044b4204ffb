"""The commands of inspect_ai with our task, our scorers and our logs, on local servers."""

import math
import os
import socket
import subprocess
import time
import urllib.request

import harness_python
import pytest

from mcr_jax.adapters.inspect_log import FOUND, VERIFIED
from mcr_jax.cli.main import main
from mcr_jax.completion import render
from mcr_jax.data.dataset import load_cases

pytestmark = pytest.mark.slow
CHROMIUM = "/usr/bin/chromium"


@pytest.fixture
def inspect(openai, tmp_path):
    """Runs `inspect` with the server as the provider openai-api/loopback."""
    env = {**os.environ, "LOOPBACK_API_KEY": openai.key, "LOOPBACK_BASE_URL": openai.url}

    def run(*arguments):
        call = [harness_python.tool("inspect"), *map(str, arguments), "--display=plain"]
        done = subprocess.run(call, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"

    return run


def test_the_task_is_found_by_its_name_and_reads_reasoning_of_a_service(
    inspect, openai, clinic_data, tmp_path
):
    case = load_cases(clinic_data, "test")[0]
    trace = " ".join(case.statements)
    said = f"<answer>{case.final_diagnosis}</answer>"
    openai.then(openai.says(said, thoughts=trace, field="reasoning_content"))
    inspect(
        *("eval", "mcr_jax/medcasereasoning", "--limit=1", f"--log-dir={tmp_path / 'logs'}"),
        *("--model=openai-api/loopback/m", "--model-role=grader=openai-api/loopback/judge"),
        *("-T", f"data_dir={clinic_data}", "-T", "prompt=diagnose_brief", "-T", "samples=1"),
    )
    (log,) = (tmp_path / "logs").glob("*.eval")
    out = tmp_path / "read.json"
    (sample,) = harness_python.run("read_log.py", out, log, out, "mean")["samples"]
    assert sample["scores"]["diagnosis"]["value"] == 1
    assert sample["scores"]["reasons"]["value"] == {FOUND: 1, VERIFIED: 1}
    assert [call.body["model"] for call in openai.calls] == ["m", "judge", "judge"]


@pytest.fixture
def log(ours, tmp_path):
    """Our log of completions that are judged already, and the numbers of results.json."""
    numbers, path = ours(recall_samples=2), tmp_path / "made.eval"
    assert main(["export-log", f"--workdir={tmp_path / 'ours'}", f"--out={path}"]) == 0
    return path, numbers


def test_our_scorers_judge_our_log_again_inside_inspect_ai(inspect, openai, log, tmp_path):
    path, numbers = log
    openai.calls.clear()
    again = tmp_path / "again.eval"
    grader = "--model-role=grader=openai-api/loopback/judge"
    inspect(
        *("score", path, "--scorer=mcr_jax/diagnosis", "--action=overwrite", grader),
        f"--output-file={again}",
    )
    inspect(
        *("score", again, "--scorer=mcr_jax/reasons", "-S", "recall_samples=2", grader),
        *("--action=append", "--overwrite"),
    )
    assert len(openai.calls) == 7 + 3
    out = tmp_path / "read.json"
    read = harness_python.run("read_log.py", out, again, out, "mean")
    wanted = {"diagnosis": numbers["accuracy"]["1"]} | {n: numbers[n] for n in (FOUND, VERIFIED)}
    found = {score["name"]: score for score in read["written"]}
    for name, metric in wanted.items():
        value = found[name]["metrics"]["accuracy" if name == "diagnosis" else "mean"]["value"]
        assert math.isclose(value, metric["value"]), name


def _await(url, process):
    for _ in range(300):
        assert process.poll() is None, "the viewer ended"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the viewer does not answer")


def test_the_viewer_of_inspect_ai_opens_the_log(log, completions, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not os.path.exists(CHROMIUM):
        pytest.skip(f"no Chromium at {CHROMIUM}")
    (tmp_path / "logs").mkdir()
    log[0].rename(tmp_path / "logs" / "made.eval")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    call = [harness_python.tool("inspect"), "view", "start", f"--log-dir={tmp_path / 'logs'}"]
    call += ["--host=127.0.0.1", f"--port={port}"]
    case, _, ((text, _), *_) = completions[0]
    with subprocess.Popen(call, cwd=tmp_path, stdout=subprocess.DEVNULL) as viewer:
        try:
            _await(f"http://127.0.0.1:{port}/", viewer)
            with sync_api.sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
                )
                page, failures = browser.new_page(), []
                page.on("pageerror", lambda error: failures.append(str(error)))
                page.goto(f"http://127.0.0.1:{port}/#/logs/made.eval")
                page.get_by_text(case.fingerprint).first.click()
                page.get_by_text("</answer>").first.wait_for()
                shown = page.inner_text("body")
                browser.close()
        finally:
            viewer.terminate()
    assert not failures
    assert case.case_prompt.split(". ")[0] in shown and case.final_diagnosis in shown
    assert text == render(text.split("\n")[1], case.final_diagnosis) and text in shown
