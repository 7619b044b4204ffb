"""Training resumes after a kill bit for bit, stops early, and says why it stops."""

import contextlib
import dataclasses
import json
import shutil
import signal

import jax
import numpy as np
import pytest
from flax import nnx
from quick import quick
from small_run import CASES, LONG, PROMPT, settings

from mcr_jax.errors import McrError, Stopped, UsageError
from mcr_jax.model import store
from mcr_jax.model.shape import LoraConfig
from mcr_jax.train import loop
from mcr_jax.train.checkpoint import Checkpoints
from mcr_jax.train.loop import Trained, train
from mcr_jax.train.optimizer import OPTIMIZERS
from mcr_jax.train.trainer import Trainer
from mcr_jax.train.training_data import Inputs
from mcr_jax.workdir import Workdir

TIMES = {"seconds", "tokens_per_second", "data_wait", "goodput"}


@pytest.fixture(scope="module")
def run(shape, clinic_tokenizer):
    """Trains in a folder; returns what happened and the workdir."""

    def run(folder, cases=CASES, shape=shape, profile=range(0), identity=None, **changes):
        workdir, config = Workdir(folder), settings(**changes)
        inputs = Inputs(shape=shape, cases=cases, tokenizer=clinic_tokenizer, prompt=PROMPT)
        return train(workdir, config, inputs, identity, profile), workdir

    return run


@pytest.fixture(scope="module")
def straight(run, tmp_path_factory):
    return run(tmp_path_factory.mktemp("straight"))


def killed_after_step_3(straight, folder) -> Workdir:
    """What a kill -9 after the checkpoint of step 3, in the middle of a line, leaves."""
    shutil.copytree(straight[1].path, folder)
    left = Workdir(folder)
    shutil.rmtree(left.checkpoints / "6")
    with open(left.metrics, "a") as file:
        file.write('{"step": 7, "lo')
    return left


def metrics(workdir) -> list[dict]:
    found = [json.loads(line) for line in workdir.metrics.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in found]


def weights(workdir, shape):
    model, step = store.trained(workdir.checkpoints, shape)
    assert step == 6
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def test_a_run_leaves_checkpoints_and_a_line_per_step(straight):
    done, workdir = straight
    assert (done.step, done.resumed, done.early) == (6, 0, False)
    ((fingerprint, length),) = done.dropped  # the case that no row holds
    assert fingerprint == LONG.fingerprint and length > 160
    assert done.rates["tokens_per_second"] > 0 and 0 < done.rates["goodput"] < 1
    assert sorted(p.name for p in workdir.checkpoints.iterdir() if p.is_dir()) == ["3", "6"]
    losses = [line for line in metrics(workdir) if "loss" in line]
    assert [line["step"] for line in losses] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in metrics(workdir) if "val_loss" in line] == [2, 4, 6]
    assert 0 < losses[0]["epoch"] < losses[-1]["epoch"]
    assert losses[-1]["loss"] < losses[0]["loss"]


def test_a_killed_run_ends_with_the_same_bits(straight, run, shape, tmp_path):
    left = killed_after_step_3(straight, tmp_path / "killed")
    done, _ = run(left.path)
    assert (done.step, done.resumed) == (6, 3)
    assert metrics(left) == metrics(straight[1])
    jax.tree.map(np.testing.assert_array_equal, weights(left, shape), weights(straight[1], shape))


@pytest.mark.promise("A run may resume on another mesh or number of processes.")
def test_a_killed_run_goes_on_on_another_mesh(straight, run, tmp_path):
    left = killed_after_step_3(straight, tmp_path / "moved")
    done, _ = run(left.path, **{"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2})
    assert done.resumed == 3
    for here, there in zip(metrics(left), metrics(straight[1]), strict=True):
        assert here.keys() == there.keys()
        assert list(here.values()) == pytest.approx(list(there.values()), rel=2e-3)


def test_a_finished_run_does_nothing(straight, run):
    before = {p: p.stat().st_mtime_ns for p in straight[1].path.rglob("*")}
    done, workdir = run(straight[1].path)
    assert done == Trained(step=6, resumed=6)
    assert {p: p.stat().st_mtime_ns for p in workdir.path.rglob("*")} == before


def test_a_handful_of_cases_is_learned_by_heart(run, tmp_path):
    few = {"train": CASES["train"][:4], "val": []}
    longer = {"train.steps": 32, "train.checkpoint_every": 32, "train.row_tokens": 96}
    _, workdir = run(tmp_path / "few", few, **longer, **{"optim.learning_rate": 3e-2})
    losses = [line["loss"] for line in metrics(workdir)]
    assert len(losses) == 32  # no validation line either
    assert losses[-1] < losses[0] / 10


def test_a_loss_that_is_not_finite_stops_the_run_in_one_line(run, tmp_path):
    with pytest.raises(McrError) as stopped:
        run(tmp_path / "nan", **{"optim.learning_rate": 1e30, "optim.warmup_steps": 0})
    message = str(stopped.value)
    assert "\n" not in message
    assert "the loss at step 2 is" in message or "the gradient_norm at step" in message
    told = json.loads((tmp_path / "nan" / "diverged.json").read_text())
    known = {case.fingerprint for case in CASES["train"]}
    assert len(told["cases"]) >= 8 and set(told["cases"]) <= known
    assert told["cases"][0][:12] in message
    workdir = Workdir(tmp_path / "nan")
    assert all(np.isfinite(list(line.values())).all() for line in metrics(workdir))
    assert not [p for p in workdir.checkpoints.iterdir() if p.name.isdigit()]


def test_a_damaged_checkpoint_is_one_line(straight, run, tmp_path):
    left = killed_after_step_3(straight, tmp_path / "damaged")
    for path in (left.checkpoints / "3" / "params").rglob("*"):
        if path.is_file():
            path.write_bytes(b"\0" * 64)
    with pytest.raises(McrError) as refused:
        run(left.path)
    assert str(left.checkpoints) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_a_finished_run_that_counts_epochs_does_nothing_either(run, tmp_path):
    by_epochs = {"train.epochs": 1.0, "train.checkpoint_every": 100}
    done, workdir = run(tmp_path / "epochs", **by_epochs)
    losses = [line for line in metrics(workdir) if "loss" in line]
    assert losses[-2]["epoch"] < 1 <= losses[-1]["epoch"]
    assert done.step == losses[-1]["step"] == len(losses)
    assert run(tmp_path / "epochs", **by_epochs)[0].resumed == done.step


def test_training_ends_when_the_validation_loss_no_longer_falls(run, tmp_path):
    flat = {"train.eval_every": 1, "train.patience": 2, "optim.learning_rate": 0.0}
    done, workdir = run(tmp_path / "flat", **flat)
    assert (done.step, done.early) == (3, True)  # one to compare with, and two no better
    assert [line["step"] for line in metrics(workdir) if "val_loss" in line] == [1, 2, 3]
    again, _ = run(tmp_path / "flat", **flat)
    assert (again.step, again.resumed, again.early) == (3, 3, True)
    more, _ = run(tmp_path / "flat", **{**flat, "train.patience": 0})
    assert (more.step, more.resumed, more.early) == (6, 3, False)


def test_the_best_checkpoint_is_kept_beside_the_newest(run, shape, tmp_path):
    # A rate that becomes far too high.
    rates = {"optim.learning_rate": 1.0, "optim.warmup_steps": 7, "train.steps": 8}
    often = {"train.eval_every": 1, "train.checkpoint_every": 3, "train.keep": 1}
    _, workdir = run(tmp_path / "best", **rates, **often, **{"train.keep_best": 1})
    losses = {line["step"]: line["val_loss"] for line in metrics(workdir) if "val_loss" in line}
    best = min(losses, key=losses.get)
    assert best not in (3, 6, 8)
    kept = sorted(int(p.name) for p in workdir.checkpoints.iterdir() if p.name.isdecimal())
    assert kept == [best, 8]
    assert store.trained(workdir.checkpoints, shape, which="best")[1] == best
    assert store.trained(workdir.checkpoints, shape)[1] == 8


@pytest.fixture(scope="module")
def adapted(shape):
    return dataclasses.replace(shape, lora=LoraConfig(rank=2, alpha=8.0, dropout=0.1))


@pytest.mark.slow
def test_adapters_are_trained_resumed_and_loaded_and_nothing_else_moves(
    run, shape, adapted, tmp_path
):
    fast = {"optim.learning_rate": 0.02, "train.checkpoint_every": 3}
    done, straight = run(tmp_path / "lora", shape=adapted, **fast)
    losses = [line["loss"] for line in metrics(straight) if "loss" in line]
    assert done.step == 6 and losses[-1] < losses[0]
    left = killed_after_step_3((done, straight), tmp_path / "killed")
    assert run(left.path, shape=adapted, **fast)[0].resumed == 3
    assert metrics(left) == metrics(straight)

    base = nnx.to_pure_dict(nnx.state(store.untrained(adapted, 0), nnx.Param))
    one, step = store.trained(straight.checkpoints, adapted, seed=0)
    other, _ = store.trained(left.checkpoints, adapted, seed=0)
    assert step == 6 and one.config == shape  # the adapters are merged
    one, other = (nnx.to_pure_dict(nnx.state(m, nnx.Param)) for m in (one, other))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    moved = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(base), strict=True
        )
        if (np.asarray(a) != np.asarray(b)).any()
    }
    assert moved == {f"layers.{name}" for name in adapted.lora.targets}


@pytest.mark.slow
def test_steps_that_were_asked_for_are_traced(run, tmp_path, capsys):
    _, workdir = run(tmp_path / "traced", profile=range(2, 4))
    traces = list((workdir.path / "tb").rglob("*.xplane.pb"))
    assert len(traces) == 1 and traces[0].stat().st_size > 1000
    assert "steps 2 to 3 are traced" in capsys.readouterr().out


def test_a_trace_that_cannot_be_is_told(run, tmp_path, capsys):
    run(tmp_path / "short", profile=range(50, 55))
    assert "no step of 50 to 54 was made" in capsys.readouterr().out


@pytest.mark.slow
def test_a_signal_starts_a_trace(run, tmp_path, monkeypatch):
    def write(log, step, **values):
        if step == 1:
            signal.raise_signal(signal.SIGUSR1)
        before(log, step, **values)

    before = loop.MetricsLog.write
    monkeypatch.setattr(loop.MetricsLog, "write", write)
    _, workdir = run(tmp_path / "signalled")
    assert list((workdir.path / "tb").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_val_cases_that_no_row_holds_are_told_and_do_not_count(run, tmp_path, capsys):
    mixed = {"train": CASES["train"], "val": [*CASES["val"], LONG]}
    _, workdir = run(tmp_path / "mixed", mixed, **{"train.steps": 2})
    assert "1 of 8 val cases are longer than a row of 160 tokens" in capsys.readouterr().out
    alone = run(tmp_path / "alone", **{"train.steps": 2})[1]
    assert metrics(workdir) == metrics(alone)


@pytest.mark.parametrize("val", [[], [LONG]])
@pytest.mark.parametrize("wish", ["keep_best", "patience"])
def test_what_needs_a_validation_loss_is_refused_where_there_is_none(run, tmp_path, val, wish):
    cases = {"train": CASES["train"], "val": val}
    with pytest.raises(UsageError, match=f"config.train.{wish}=1 need"):
        run(tmp_path / "none", cases, **{f"train.{wish}": 1})


def test_a_mesh_that_cannot_be_is_refused_before_anything_is_made(run, tmp_path):
    with pytest.raises(UsageError, match="not a multiple of"):
        run(tmp_path / "rows", **{"train.rows": 3})
    assert not list((tmp_path / "rows").iterdir())


@pytest.mark.slow
def test_patience_that_runs_out_at_the_last_step_is_no_early_end(run, tmp_path):
    flat = {"train.eval_every": 1, "train.patience": 2, "optim.learning_rate": 0.0}
    done, _ = run(tmp_path / "last", **flat, **{"train.steps": 3})
    assert (done.step, done.early) == (3, False)


@pytest.mark.slow
def test_stopped_where_a_validation_was_due_it_is_measured_on_the_way_on(
    run, straight, tmp_path, monkeypatch
):
    before = loop.hosts.listening

    @contextlib.contextmanager
    def at_four():
        yield lambda step: step == 4

    monkeypatch.setattr(loop.hosts, "listening", at_four)
    with pytest.raises(Stopped, match="step 4 is saved"):
        run(tmp_path / "stopped")
    monkeypatch.setattr(loop.hosts, "listening", before)
    assert [m["step"] for m in metrics(Workdir(tmp_path / "stopped")) if "val_loss" in m] == [2]
    assert run(tmp_path / "stopped")[0].resumed == 4
    assert metrics(Workdir(tmp_path / "stopped")) == metrics(straight[1])


@pytest.mark.slow
def test_a_lost_workdir_does_not_undo_the_patience(run, tmp_path):
    flat = {"train.eval_every": 1, "train.patience": 3, "optim.learning_rate": 0.0}
    flat |= {"train.checkpoints": str(tmp_path / "shared"), "train.checkpoint_every": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            loop.hosts, "listening", lambda: contextlib.nullcontext(lambda step: step == 3)
        )
        with pytest.raises(Stopped):
            run(tmp_path / "first", **flat)
    done, _ = run(tmp_path / "second", **flat)  # the first one is lost with its machine
    assert (done.resumed, done.step, done.early) == (3, 4, True)


def test_an_attention_that_the_device_cannot_do_is_one_line(run, shape, tmp_path):
    with pytest.raises(UsageError, match=r"config.attention: .* cannot do this: it needs"):
        run(tmp_path / "cudnn", shape=dataclasses.replace(shape, attention="cudnn"))


def test_checkpoints_of_another_run_are_refused(run, tmp_path):
    shared = {"train.checkpoints": str(tmp_path / "shared"), "train.steps": 3}
    assert run(tmp_path / "one", identity={"seed": 0}, **shared)[0].step == 3
    assert run(tmp_path / "two", identity={"seed": 0}, **shared)[0].resumed == 3
    with pytest.raises(UsageError, match="another run"):
        run(tmp_path / "three", identity={"seed": 7}, **shared)


NEW = [name for name in OPTIMIZERS if name != "adamw"]


@pytest.mark.parametrize(
    ("name", "lora"), quick(len(NEW), [(name, lora) for lora in (False, True) for name in NEW])
)
def test_every_optimizer_learns_and_resumes_to_the_same_bits(
    run, shape, adapted, tmp_path, name, lora
):
    changes = {"optim.name": name, "train.steps": 4, "train.checkpoint_every": 2}
    changes |= {"optim.learning_rate": 0.02} if lora else {}
    trained = adapted if lora else shape
    like = Trainer(settings(**changes), trained, 4).like()

    def end(resumed):
        result, workdir = run(tmp_path / name, shape=trained, **changes)
        assert (result.resumed, result.step) == (resumed, 4)
        with contextlib.closing(Checkpoints(workdir.checkpoints, 9)) as checkpoints:
            return metrics(workdir), checkpoints.restore(4, like)

    unbroken, state = end(resumed=0)
    shutil.rmtree(tmp_path / name / "checkpoints" / "4")
    again, state_again = end(resumed=2)
    assert again == unbroken
    jax.tree.map(np.testing.assert_array_equal, state_again, state)
    losses = [line["loss"] for line in unbroken if "loss" in line]
    assert losses[-1] < losses[0]
