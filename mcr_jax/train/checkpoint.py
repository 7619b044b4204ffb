"""Checkpoints of a training run, through orbax: asynchronous, whole or absent."""

import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from mcr_jax import console, disk
from mcr_jax.errors import McrError, Stopped, UsageError
from mcr_jax.model.store import storage_errors, val_losses
from mcr_jax.train import hosts
from mcr_jax.train.step import State
from mcr_jax.workdir import storage_path

_LEAST_SHARE = 0.85  # of a checkpoint's bytes, which are compressed
RUN = "run.json"  # beside the steps: whose checkpoints they are


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Never: orbax would ask jax, which counts calls, with a step that is no count of them.

        `hosts.listening` asks, and the loop saves when it says so.
        """
        return False


class Checkpoints:
    """The checkpoints in one folder: the newest ones, and those of the lowest validation loss.

    A save that a kill interrupts leaves nothing that `restore` would take: orbax writes aside and
    renames, or marks as whole where an object store cannot rename. With several processes all call
    every method. Every method raises McrError when the storage fails; what was saved before is
    kept.
    """

    def __init__(
        self,
        path: str | Path,
        keep: int,
        keep_best: int = 0,
        run: Mapping[str, Any] | None = None,
    ):
        """Opens `path`, creating it.

        Args:
          path: a folder, or an address such as gs://BUCKET/RUN; the same for all processes.
          keep: how many of the newest are kept.
          keep_best: how many of the lowest val_loss are kept beside.
          run: plain data by which a run knows its own checkpoints, written beside them.

        Raises:
          UsageError: not all processes see that folder, or its checkpoints are of another run.
        """
        self.path = storage_path(path)
        self._kept = keep + keep_best
        self._losses: dict[int, float] = {}  # of the checkpoints whose val_loss was measured
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Kept(keep, keep_best, self._losses),
            best_fn=lambda metrics: metrics["val_loss"],  # without one orbax stores no metrics
            best_mode="min",
            cleanup_tmp_directories=True,
            single_host_load_and_broadcast=True,  # all see the same steps whatever NFS remembers
            lightweight_initialize=True,  # or it would not open where metrics are unreadable
        )
        with storage_errors(self.path, "open"):
            self.path.mkdir(parents=True, exist_ok=True)  # orbax says nothing of a file in the way
            self._refuse_unshared()
            self._manager = _Manager(self.path, options=options)
        if run is not None:
            self._refuse_other(json.loads(json.dumps(run)))
        self._losses.update(val_losses(self._manager, self.path))

    @property
    def latest(self) -> int | None:
        """The step of the newest whole checkpoint, or None."""
        return max(self._steps(), default=None)

    @property
    def best(self) -> int | None:
        """The step of the lowest val_loss among the checkpoints there are, or None."""
        measured = [step for step in self._steps() if step in self._losses]
        return min(measured, key=lambda step: (self._losses[step], -step), default=None)

    def require_room(self, like: State, saves: int) -> None:
        """Raises McrError if a local disk is too small for what is to be kept there.

        Args:
          like: of what is saved.
          saves: checkpoints that are still to be made.
        """
        if "://" in str(self.path):
            return
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like))
        # The one that a new one replaces is deleted after it.
        more = min(saves, self._kept + 1 - len(self._steps()))
        disk.require(
            Path(self.path),
            max(0, more) * size * _LEAST_SHARE,
            f"{more} more checkpoints of {size / 1e9:.3g} GB",
            "keep fewer with config.train.keep and keep_best, or name another place with "
            "config.train.checkpoints",
        )

    def losses(self, until: int) -> dict[int, float]:
        """The val_loss of each checkpoint up to step `until` where one was measured."""
        return {step: loss for step, loss in sorted(self._losses.items()) if step <= until}

    def history(self, step: int) -> list[tuple[int, float]]:
        """The validation losses that were stored with a checkpoint; none where it has none."""
        found = []
        try:
            with storage_errors(self.path, "read"):
                item = self.path / str(step) / "history"
                stored = ocp.JsonCheckpointHandler().restore(item) if item.exists() else ()
                found = [(int(at), float(loss)) for at, loss in stored]
        except Stopped:
            raise
        except (McrError, TypeError) as error:
            console.say(f"  {error}: the losses before step {step} count as not measured")
        return found

    def save(
        self,
        step: int,
        state: State,
        val_loss: float | None = None,
        history: Sequence[tuple[int, float]] = (),
    ) -> None:
        """Starts saving `state`; waits only until it is copied off the devices.

        A `val_loss` measured at `step` is stored with it, and so is the `history` of all so far:
        metrics.jsonl may be lost with its machine, and early stopping needs it.
        """
        params, rest = _halves(state)
        items = {"params": ocp.args.StandardSave(params), "rest": ocp.args.StandardSave(rest)}
        if history:
            items["history"] = ocp.args.JsonSave([list(measured) for measured in history])
        args = ocp.args.Composite(**items)
        metrics = None
        if val_loss is not None and math.isfinite(val_loss):
            self._losses[step] = val_loss
            metrics = {"val_loss": val_loss}
        with storage_errors(self.path, "save"):
            self._manager.save(step, args=args, metrics=metrics)

    def restore(self, step: int, like: State) -> State:
        """Reads a checkpoint onto the shardings of `like`, a State of ShapeDtypeStructs."""
        found, fault = None, None
        try:
            found = self._read(step, like)
        except Stopped:
            raise  # is no fault of the checkpoint
        except McrError as error:
            fault = error
        self._raise_on_all(fault, f"another process cannot read step {step}")
        return found

    def restore_newest(self, like: State) -> tuple[State | None, int]:
        """The newest checkpoint that can be read, and its step; (None, 0) where there is none.

        Newer ones that are damaged are renamed to STEP.damaged, with a word about it.

        Raises:
          McrError: there are some and none can be read; they are left as they are. Or a damaged one
            cannot be renamed.
        """
        damaged: list[tuple[int, McrError]] = []
        for step in sorted(self._steps(), reverse=True):
            try:
                state = self.restore(step, like)
            except Stopped:
                raise
            except McrError as error:
                damaged.append((step, error))
                continue
            for other, error in damaged:
                self._set_aside(other)
                console.say(f"  {error}; it is set aside, training goes on from step {step}")
            if damaged:
                self._manager.reload()
            return state, step
        if damaged:
            raise damaged[0][1]
        return None, 0

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        with storage_errors(self.path, "save"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of orbax's threads."""
        with storage_errors(self.path, "save"):
            self._manager.close()

    def _steps(self) -> list[int]:
        """Steps with a whole checkpoint. In multi-host runs orbax returns numpy's integers."""
        return [int(step) for step in self._manager.all_steps()]

    def _read(self, step: int, like: State) -> State:
        """Reads this process's part: one that fails must not leave the others at a barrier."""
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        params, rest = _halves(like)
        args = ocp.args.Composite(
            params=ocp.args.StandardRestore(params), rest=ocp.args.StandardRestore(rest)
        )
        with (
            storage_errors(self.path, "read"),
            ocp.Checkpointer(
                ocp.CompositeCheckpointHandler(), multiprocessing_options=alone
            ) as reader,
        ):
            found = reader.restore(self.path / str(step), args=args)
        return State(params=found["params"], **found["rest"])

    def _set_aside(self, step: int) -> None:
        """Renames a step to the first free of STEP.damaged, STEP.damaged1, ..."""
        fault = None
        try:
            if hosts.writes():
                with storage_errors(self.path, "set aside"):
                    names = (f"{step}.damaged{number or ''}" for number in itertools.count())
                    free = next(name for name in names if not (self.path / name).exists())
                    (self.path / str(step)).rename(self.path / free)
        except Stopped:
            raise
        except McrError as error:
            fault = error
        self._raise_on_all(fault, f"process 0 cannot set step {step} aside")
        self._losses.pop(step, None)

    def _refuse_other(self, run: Mapping[str, Any]) -> None:
        """Raises UsageError if the checkpoints here are of another run; leaves a name of this."""
        fault, file = None, self.path / RUN
        try:
            with storage_errors(self.path, "open"):
                known = _read_run(file)
                if known is not None and self._manager.all_steps():
                    fault = _other(self.path, known, run)
                elif known != run and hosts.writes():
                    whole = self.path / f".{RUN}"
                    whole.write_text(json.dumps(run, indent=1, sort_keys=True) + "\n")
                    whole.replace(file)
        except Stopped:
            raise
        except McrError as error:
            fault = error
        try:
            self._raise_on_all(fault, "of another run, or unreadable; process 0 tells more")
        except McrError:
            self._manager.close()
            raise

    def _raise_on_all(self, fault: McrError | None, otherwise: str) -> None:
        """Raises the `fault` of this process, or where another has one says `otherwise`."""
        if not hosts.all_of(fault is None):
            raise fault or McrError(f"{self.path}: {otherwise}")

    def _refuse_unshared(self) -> None:
        if hosts.processes() == 1:
            return
        mark = self.path / f".seen_by_all_{hosts.agreed(time.time_ns() % 2**31)}"
        if hosts.writes():
            mark.touch()
        hosts.meet("mark")
        seen = hosts.all_of(mark.exists())
        if hosts.writes():
            mark.unlink()
        if not seen:
            raise UsageError(
                f"{self.path}: not all processes see it: set config.train.checkpoints to a folder "
                "that all hosts share, or to an address such as gs://BUCKET/RUN"
            )


class _Kept(checkpoint_managers.PreservationPolicy):
    """The newest `keep`, and of those with a loss the `keep_best` lowest."""

    def __init__(self, keep: int, keep_best: int, losses: dict[int, float]):
        self._keep, self._keep_best, self._losses = keep, keep_best, losses

    def should_preserve(
        self,
        checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
        *,
        context: checkpoint_managers.PreservationContext,
    ) -> Sequence[bool]:
        """One answer for each of `checkpoints`, which come in the order of their steps."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        measured = [step for step in steps if step in self._losses]
        best = sorted(measured, key=lambda step: (self._losses[step], -step))[: self._keep_best]
        kept = {*steps[-self._keep :], *best}
        return [step in kept for step in steps]


def _halves(state: State) -> tuple[dict, dict]:
    return state.params, {"step": state.step, "opt_state": state.opt_state}


def _read_run(file: Any) -> Any:
    """What run.json holds; None where there is none."""
    try:
        return json.loads(file.read_text()) if file.exists() else None
    except ValueError as error:
        raise McrError(
            f"{file}: unreadable ({error}); delete it if the checkpoints there are of this run"
        ) from error


def _other(path: Any, known: Any, run: Mapping[str, Any]) -> UsageError | None:
    """What to say if `known`, of the run whose checkpoints are in `path`, is not `run`."""
    old, new = _flat(known), _flat(run)
    different = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    if not different:
        return None
    told = [f"{name} {_shown(old, name)}, now {_shown(new, name)}" for name in different[:3]]
    told += [f"and {len(different) - 3} more"] * (len(different) > 3)
    return UsageError(
        f"{path}: these checkpoints are of another run: {'; '.join(told)}; use another "
        "config.train.checkpoints or --workdir"
    )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested plain data by their dotted names."""
    if not isinstance(value, Mapping):
        return {name: value}
    return {
        key: leaf
        for part, inside in value.items()
        for key, leaf in _flat(inside, f"{name}.{part}" if name else str(part)).items()
    }


def _shown(values: Mapping[str, Any], name: str) -> str:
    return str(values[name]) if name in values else "not set"
