"""Checkpoints are whole or absent, and every fault of the storage is one line."""

import gc
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcr_jax.errors import McrError, Stopped, UsageError
from mcr_jax.model.sharding import abstract, make_mesh, shardings
from mcr_jax.train.checkpoint import Checkpoints
from mcr_jax.train.step import State


def state(step: int, size: int = 64) -> State:
    rng = np.random.default_rng(step)
    q = jnp.asarray(rng.standard_normal((2, size, 4, 8)), jnp.float32)
    moments = {"mu": {"layers": {"q": 2 * q}}, "count": jnp.int32(step)}
    return State(step=jnp.int32(step), params={"layers": {"q": q}}, opt_state=moments)


def like(made: State, *mesh: int) -> State:
    placed = shardings(make_mesh(*(mesh or (2, 2, 2))), made)
    return abstract(made, placed)


def same(a: State, b: State) -> bool:
    return jax.tree.all(jax.tree.map(lambda x, y: bool((np.asarray(x) == y).all()), a, b))


def refusal(act) -> str:
    with pytest.raises(McrError) as refused:
        act()
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with checkpoints of steps 2 and 3."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(folder, 2)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step))
    checkpoints.close()
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def test_a_new_folder_has_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new", 2)
    assert checkpoints.latest is None
    checkpoints.close()


def test_the_newest_are_kept_and_come_back_bit_for_bit_on_any_mesh(saved):
    assert sorted(int(p.name) for p in saved.iterdir() if p.name.isdigit()) == [2, 3]
    checkpoints = Checkpoints(saved, 2)
    assert checkpoints.latest == 3
    for step, mesh in ((3, (2, 2, 2)), (3, (1, 8, 1)), (2, (1, 1, 8))):
        wanted = like(state(step), *mesh)
        found = checkpoints.restore(step, wanted)
        assert same(found, state(step))
        assert jax.tree.all(jax.tree.map(lambda x, w: x.sharding == w.sharding, found, wanted))
    checkpoints.close()


def test_what_a_kill_leaves_of_a_save_is_not_taken_for_a_checkpoint(copied):
    for path in list(copied.iterdir()):  # as orbax names what it has not finished
        if path.name == "3":
            path.rename(path.with_name("3.orbax-checkpoint-tmp-1234567890"))
    checkpoints = Checkpoints(copied, 2)
    assert checkpoints.latest == 2
    assert same(checkpoints.restore(2, like(state(2))), state(2))
    checkpoints.save(3, state(3))
    checkpoints.wait()
    assert checkpoints.latest == 3
    checkpoints.close()
    assert sorted(p.name for p in copied.iterdir() if p.is_dir()) == ["2", "3"]


@pytest.mark.promise("A damaged newest checkpoint is set aside.")
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_is_used(copied, capsys):
    for file in (copied / "3").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    checkpoints = Checkpoints(copied, 2)
    found, step = checkpoints.restore_newest(like(state(3)))
    assert step == 2 and same(found, state(2))
    assert "set aside" in capsys.readouterr().out
    assert (copied / "3.damaged").is_dir() and checkpoints.latest == 2
    checkpoints.save(3, state(3))
    checkpoints.wait()
    assert checkpoints.restore_newest(like(state(3)))[1] == 3
    checkpoints.close()


def test_a_step_damaged_again_and_again_is_set_aside_each_time(copied):
    checkpoints = Checkpoints(copied, 2)
    for _ in range(3):
        for file in (copied / "3").rglob("*"):
            if file.is_file():
                file.write_bytes(b"")
        assert checkpoints.restore_newest(like(state(3)))[1] == 2
        checkpoints.save(3, state(3))
        checkpoints.wait()
    checkpoints.close()
    aside = sorted(p.name for p in copied.iterdir() if "damaged" in p.name)
    assert aside == ["3.damaged", "3.damaged1", "3.damaged2"]


def test_sigterm_while_a_checkpoint_is_read_is_no_fault_of_it(copied, monkeypatch):
    checkpoints = Checkpoints(copied, 2)

    def stopped(*_):
        raise Stopped("stopped")

    monkeypatch.setattr(checkpoints, "_read", stopped)
    with pytest.raises(Stopped):
        checkpoints.restore_newest(like(state(3)))
    checkpoints.close()
    assert kept(copied) == [2, 3]


def test_where_no_checkpoint_can_be_read_all_are_left_alone(copied):
    checkpoints = Checkpoints(copied, 2)
    message = refusal(lambda: checkpoints.restore_newest(like(state(3, size=32))))
    assert str(copied) in message
    assert sorted(p.name for p in copied.iterdir() if p.is_dir()) == ["2", "3"]
    checkpoints.close()


def test_no_damaged_file_gives_other_values_or_a_traceback(saved, tmp_path):
    whole = saved / "3"
    files = [p.relative_to(whole) for p in whole.rglob("*") if p.is_file()]
    assert len(files) > 3
    refused = 0
    for number, file in enumerate(files):
        for damage in ("missing", "empty", "halved"):
            folder = tmp_path / f"{number}{damage}"
            shutil.copytree(whole, folder / "3")
            content = (folder / "3" / file).read_bytes()
            if damage == "missing":
                (folder / "3" / file).unlink()
            else:
                half = len(content) // 2 if damage == "halved" else 0
                (folder / "3" / file).write_bytes(content[:half])
            try:
                checkpoints = Checkpoints(folder, 2)
                if checkpoints.latest is not None:
                    assert same(checkpoints.restore(3, like(state(3))), state(3)), (file, damage)
            except McrError as error:
                assert "\n" not in str(error)
                refused += 1
            finally:
                checkpoints.close()
    assert refused > 6


def test_a_checkpoint_of_another_shape_is_one_line(saved):
    checkpoints = Checkpoints(saved, 2)
    message = refusal(lambda: checkpoints.restore(3, like(state(3, size=32))))
    assert str(saved) in message
    checkpoints.close()


def kept(folder) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Checkpoints 1 to 7, the newest and the best two of them kept; 2, 3, 5 and 6 were measured."""
    folder = tmp_path_factory.mktemp("measured") / "checkpoints"
    checkpoints = Checkpoints(folder, 1, keep_best=2)
    assert checkpoints.best is None
    losses = {2: 0.5, 3: 0.9, 5: 0.7, 6: float("nan")}
    for step in range(1, 8):
        checkpoints.save(step, state(step, size=4), losses.get(step))
        checkpoints.wait()
        assert checkpoints.best == (2 if step >= 2 else None)
    checkpoints.close()
    return folder


def test_the_newest_and_the_best_are_kept(measured):
    assert kept(measured) == [2, 5, 7]


def test_the_best_are_known_and_kept_when_opened_again(measured, tmp_path):
    folder = shutil.copytree(measured, tmp_path / "again")
    checkpoints = Checkpoints(folder, 1, keep_best=2)
    assert (checkpoints.latest, checkpoints.best) == (7, 2)
    checkpoints.save(8, state(8, size=4), 0.6)
    checkpoints.close()
    assert kept(folder) == [2, 8]  # the newest is among the best two
    assert same(checkpoints.restore(2, like(state(2, size=4))), state(2, size=4))


def test_of_equal_losses_the_newest_is_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, 1, keep_best=1)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step, size=4), 0.5 if step < 3 else None)
    checkpoints.close()
    assert checkpoints.best == 2 and kept(tmp_path) == [2, 3]


def test_an_unreadable_loss_costs_only_that_it_is_known(measured, tmp_path, capsys):
    folder = shutil.copytree(measured, tmp_path / "damaged")
    for file in (folder / "2" / "metrics").iterdir():
        file.write_bytes(file.read_bytes()[:5])
    checkpoints = Checkpoints(folder, 1, keep_best=2)
    assert "the val_loss of step 2 counts as not measured" in capsys.readouterr().out
    assert (checkpoints.latest, checkpoints.best) == (7, 5)
    assert same(checkpoints.restore(2, like(state(2, size=4))), state(2, size=4))
    checkpoints.close()


def test_parameters_may_be_any_tree_such_as_adapters_alone(tmp_path):
    adapters = {"layers": {"q_lora_a": jnp.ones((2, 16, 4)), "q_lora_b": jnp.zeros((2, 4, 8))}}
    made = State(step=jnp.int32(1), params=adapters, opt_state=({"mu": adapters}, ()))
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(1, made)
    checkpoints.wait()
    found, step = checkpoints.restore_newest(like(made))
    checkpoints.close()
    assert step == 1 and same(found, made)
    assert jax.tree.structure(found) == jax.tree.structure(made)


def test_a_step_that_is_not_there_is_one_line(saved):
    checkpoints = Checkpoints(saved, 2)
    assert str(saved) in refusal(lambda: checkpoints.restore(7, like(state(3))))
    checkpoints.close()


def test_a_folder_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert str(tmp_path / "file") in refusal(lambda: Checkpoints(tmp_path / "file", 2))


def test_room_for_all_that_is_kept_is_asked_for_before_anything_is_saved(small_disk):
    made = state(1, 1024)  # 2 x 262 kB
    checkpoints = Checkpoints(small_disk / "checkpoints", keep=2)
    try:
        line = refusal(lambda: checkpoints.require_room(like(made), saves=9))
        assert "no space left for 3 more checkpoints" in line and "config.train.keep" in line
        checkpoints.require_room(like(made), saves=0)
        checkpoints.require_room(like(state(1)), saves=9)
    finally:
        checkpoints.close()


def test_a_full_disk_is_one_line_and_keeps_the_checkpoint_before(small_disk, caplog):
    folder = small_disk / "checkpoints"
    checkpoints = Checkpoints(folder, 2)
    checkpoints.save(1, state(1, size=8))
    checkpoints.wait()

    def too_much():
        many = {str(n): state(n, size=512).params for n in range(16)}
        checkpoints.save(2, state(2)._replace(params=many))
        checkpoints.wait()

    assert refusal(too_much).endswith("no space left on the device")
    gc.collect()  # asyncio would tell here of each further write that failed
    assert not caplog.records
    again = Checkpoints(folder, 2)
    assert again.latest == 1
    assert same(again.restore(1, like(state(1, size=8))), state(1, size=8))
    again.close()


RUN = {"seed": 1, "lora": {"rank": 0}, "tokens": "abc", "mesh": [1, -1, 1]}


def opened(folder, run=None, step=0):
    """Opens a folder as `run`, saves `step` there, closes it; returns the newest step."""
    checkpoints = Checkpoints(folder, 2, run=run)
    if step:
        checkpoints.save(step, state(step, size=4))
    checkpoints.close()
    return checkpoints.latest


def test_a_run_knows_its_own_checkpoints_and_refuses_those_of_another(tmp_path):
    opened(tmp_path, RUN | {"seed": 7})  # which ended before its first checkpoint
    assert opened(tmp_path, RUN, step=1) == 1
    assert opened(tmp_path, dict(reversed(RUN.items()))) == 1
    other = RUN | {"lora": {"rank": 4, "alpha": 8}, "tokens": "b", "seed": 2}
    with pytest.raises(UsageError) as refused:
        opened(tmp_path, other)
    assert str(refused.value) == (
        f"{tmp_path}: these checkpoints are of another run: lora.alpha not set, now 8; lora.rank "
        "0, now 4; seed 1, now 2; and 1 more; use another config.train.checkpoints or --workdir"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "run.json"]


def test_checkpoints_that_say_not_whose_they_are_are_taken_for_ones_own(copied):
    assert opened(copied, RUN) == 3
    with pytest.raises(UsageError, match="seed 1, now 2"):
        opened(copied, RUN | {"seed": 2})


def test_an_unreadable_name_of_the_run_is_one_line(copied):
    (copied / "run.json").write_text("{")
    assert "delete it if the checkpoints there are of this run" in refusal(
        lambda: opened(copied, RUN)
    )


def test_the_losses_so_far_are_in_the_newest_checkpoint_when_metrics_jsonl_is_lost(tmp_path):
    told = [(1, 0.9), (2, 0.5), (3, 0.6)]
    checkpoints = Checkpoints(tmp_path, 2)
    for number, (step, loss) in enumerate(told):
        checkpoints.save(step, state(step, size=4), loss, told[: number + 1])
    checkpoints.save(4, state(4, size=4))
    checkpoints.close()
    again = Checkpoints(tmp_path, 2)
    assert again.history(3) == told and again.history(4) == again.history(9) == []
    assert again.losses(9) == {3: 0.6} and again.losses(2) == {}
    assert same(again.restore(3, like(state(3, size=4))), state(3, size=4))
    again.close()


@pytest.mark.parametrize("content", ["", "[[1, 0.", "3", "[1]"])
def test_unreadable_losses_cost_only_that_they_are_known(tmp_path, content, capsys):
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(1, state(1, size=4), 0.5, [(1, 0.5)])
    checkpoints.wait()
    (tmp_path / "1" / "history" / "metadata").write_text(content)
    assert checkpoints.history(1) == []
    checkpoints.close()
    assert "count as not measured" in capsys.readouterr().out
