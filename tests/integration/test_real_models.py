"""Two published models through all stages: logits, sixteen real cases, training, export.

SmolLM2-135M-Instruct and Gemma 3 270M come from PyPI (`registries`). `make reference` brings torch
and transformers, which convert them to folders and compute the reference numbers.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registries
from flax import nnx
from processes import Mcr, read, rows

from mcr_jax import prompts, synthetic
from mcr_jax.cases import read_cases
from mcr_jax.data.example import prompt_messages, training_texts
from mcr_jax.model import hf
from mcr_jax.text.tokenizer import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
PYTHON = pathlib.Path(
    os.environ.get("MCR_REFERENCE_PYTHON", ROOT / ".venv-reference" / "bin" / "python")
)
CASES = ROOT.parent / "shared" / "data" / "cases" / "medcasereasoning_val_16.jsonl"
TOKENS = 600  # past the window of 512 that most of Gemma's layers have
NEW_TOKENS = 24
CONFIG = """
from mcr_jax import config


def get_config():
    c = config.default()
    c.model.folder = {folder!r}
    c.data.data_dir = {data!r}
    c.data.eval_split = "val"
    c.train.steps = 20
    c.train.rows = 1
    c.train.row_tokens = 480  # longer examples are dropped: each step takes seconds here
    c.train.eval_every = c.train.checkpoint_every = 20
    c.optim.warmup_steps = 2
    c.sample.models = ("base",)
    c.sample.n = 1
    c.sample.max_tokens = {new}
    c.sample.prompt_tokens = 1024
    c.sample.slots = 16
    c.stitch.attempts = 1
    c.stitch.max_tokens = 64
    c.stitch.prompt_tokens = 1280
    return c
"""
KINDS = {
    "full": {"optim.learning_rate": 2e-5},
    "lora": {"optim.learning_rate": 1e-3, "lora.rank": 8},
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not PYTHON.exists(), reason="transformers is not there: make reference"),
]
needs_cases = pytest.mark.skipif(not CASES.exists(), reason=f"no real cases: {CASES}")


def asked(folder: pathlib.Path, question: dict, scratch: pathlib.Path) -> pathlib.Path:
    """The file that `reference_model.py` writes, without its suffix."""
    given, out = scratch / "in.json", scratch / "out"
    given.write_text(json.dumps(question), encoding="utf-8")
    done = subprocess.run(
        [PYTHON, pathlib.Path(__file__).with_name("reference_model.py"), folder, given, out],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """A function that makes the folder of a model; Gemma's, a base model, gets Gemma's layout."""

    def made(name: str) -> pathlib.Path:
        published = registries.model(name, PYTHON)
        if name != "gemma3":
            return published
        folder = tmp_path_factory.mktemp("models") / name
        folder.mkdir()
        for path in published.iterdir():
            (folder / path.name).symlink_to(path)
        told = json.loads((registries.tokenizer(name) / "tokenizer_config.json").read_text())
        (folder / "chat_template.jinja").write_text(told["chat_template"], encoding="utf-8")
        return folder

    return made


@pytest.fixture(scope="module")
def built(tmp_path_factory, mcr_env) -> pathlib.Path:
    """A data_dir with the sixteen cases: twelve train, four val."""
    folder = tmp_path_factory.mktemp("cases")
    lines = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]
    splits = ["train"] * 12 + ["val"] * 4
    cases = [{**case, "split": split} for case, split in zip(lines, splits, strict=True)]
    (folder / "cases.jsonl").write_text("".join(f"{json.dumps(case)}\n" for case in cases))
    Mcr(folder, mcr_env).ok("build", "--source=cases.jsonl", "--data_dir=tfds")
    return folder / "tfds"


@pytest.fixture
def mcr(mcr):
    """Processes that may take long: these models are a thousand times the tests' own."""
    fast = {**mcr.env, "XLA_FLAGS": ""}  # programs that run for long are to be optimized
    return dataclasses.replace(mcr, seconds=1800, env=fast)


@pytest.fixture
def run(mcr, built, folder_of):
    """A function that runs a command on the cases with a model, in a workdir."""

    def of(command: str, model: str, workdir: str, **fields: object) -> str:
        config = mcr.folder / f"{model}.py"
        if not config.exists():
            told = {"folder": str(folder_of(model)), "data": str(built), "new": NEW_TOKENS}
            config.write_text(CONFIG.format(**told))
        flags = [f"--config.{field}={value}" for field, value in fields.items()]
        return mcr.ok(command, f"--config={config}", f"--workdir={workdir}", *flags)

    return of


@pytest.mark.parametrize("model", registries.MODELS)
def test_logits_of_600_tokens_are_those_of_transformers(folder_of, model, tmp_path):
    folder = folder_of(model)
    cases = synthetic.cases(0, {"train": 20, "val": 0, "test": 0})
    text = "\n".join(training_texts(cases, prompts.load("diagnose")))
    tokens = Tokenizer.load(folder).encode(text)[:TOKENS]
    assert len(tokens) == TOKENS
    theirs = np.load(asked(folder, {"tokens": tokens}, tmp_path).with_suffix(".npy"))
    graph, params = nnx.split(hf.load(folder))
    forward = jax.jit(
        lambda params, tokens: nnx.merge(graph, params)(tokens),
        compiler_options={"xla_backend_optimization_level": 3},
    )
    ours = np.asarray(forward(params, jnp.asarray([tokens])))[0]
    largest = np.abs(theirs).max()
    worst = np.abs(ours - theirs).max()
    assert worst < 1e-4 * largest, (worst, largest)
    np.testing.assert_array_equal(ours.argmax(axis=-1), theirs.argmax(axis=-1))


@needs_cases
@pytest.mark.parametrize("model", registries.MODELS)
def test_sixteen_real_cases_are_sampled_and_stitched(mcr, run, model):
    run("stitch", model, "w")
    stitched = rows(mcr.folder / "w", "stitch")
    assert len(stitched) == 16
    assert {row["outcome"] for row in stitched} <= {"OK", "TRUNCATED"}
    assert read(mcr.folder / "w" / "stitch.json")["cases"] == {"train": 12, "val": 4}
    run("sample", model, "w", **{"data.eval_split": "train"})
    sampled = rows(mcr.folder / "w", "sample")
    assert len(sampled) == 12
    for row in (*stitched, *sampled):
        assert row["text"].strip() and row["mean_logprob"] > -5, row["text"]


@needs_cases
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", registries.MODELS)
def test_training_lowers_the_loss_and_transformers_continues_the_export_as_sampling_did(
    mcr, run, model, kind, tmp_path
):
    run("train", model, "w", **KINDS[kind])
    lines = map(json.loads, (mcr.folder / "w" / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 20 and np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1, losses

    sampled = ("--config.sample.models=('sft',)", "--config.sample.temperature=0")
    mcr.ok("sample", "--workdir=w", *sampled)
    drawn = {row["case_fingerprint"]: row["text"] for row in rows(mcr.folder / "w", "sample")}
    mcr.ok("export", "--workdir=w", "--out=out")
    cases = read_cases(str(CASES))[12:]
    prompt = prompts.load("diagnose")
    asks = [list(prompt_messages(case, prompt)) for case in cases]
    out = asked(mcr.folder / "out", {"prompts": asks, "new": NEW_TOKENS}, tmp_path)
    assert json.loads(out.with_suffix(".json").read_text("utf-8")) == [
        drawn[case.fingerprint] for case in cases
    ]
    shutil.rmtree(mcr.folder / "out")
