"""Checkpoints of a training run, through orbax: asynchronous, whole or absent."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from mcr_jax import console
from mcr_jax.errors import McrError, UsageError
from mcr_jax.model.store import storage_errors
from mcr_jax.train import hosts
from mcr_jax.train.step import State
from mcr_jax.workdir import storage_path


class Checkpoints:
    """The checkpoints in one folder: the newest ones, and those of the lowest validation loss.

    A save that a kill interrupts leaves nothing that `restore` would take: orbax writes aside and
    renames, or marks as whole where an object store cannot rename. With several processes all call
    every method. Every method raises McrError when the storage fails; what was saved before is
    kept.
    """

    def __init__(self, path: str | Path, keep: int, keep_best: int = 0):
        """Opens `path`, creating it.

        Args:
          path: a folder, or an address such as gs://BUCKET/RUN; the same for all processes.
          keep: how many of the newest are kept.
          keep_best: how many of the lowest val_loss are kept beside.

        Raises:
          UsageError: not all processes see that folder.
        """
        self.path = storage_path(path)
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
            self._manager = ocp.CheckpointManager(self.path, options=options)
        self._read_losses()

    @property
    def latest(self) -> int | None:
        """The step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The step of the lowest val_loss among the checkpoints there are, or None."""
        measured = [step for step in self._manager.all_steps() if step in self._losses]
        return min(measured, key=lambda step: (self._losses[step], -step), default=None)

    def save(self, step: int, state: State, val_loss: float | None = None) -> None:
        """Starts saving `state`; waits only until it is copied off the devices.

        A `val_loss` measured at `step` is stored with it.
        """
        params, rest = _halves(state)
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(params), rest=ocp.args.StandardSave(rest)
        )
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
        except McrError as error:
            fault = error
        if not hosts.all_of(fault is None):
            raise fault or McrError(f"{self.path}: another process cannot read step {step}")
        return found

    def restore_newest(self, like: State) -> tuple[State | None, int]:
        """The newest checkpoint that can be read, and its step; (None, 0) where there is none.

        Newer ones that are damaged are renamed to STEP.damaged, with a word about it.

        Raises:
          McrError: there are some and none can be read; they are left as they are.
        """
        damaged: list[tuple[int, McrError]] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self.restore(step, like)
            except McrError as error:
                damaged.append((step, error))
                continue
            for other, error in damaged:
                self._set_aside(other)
                console.say(f"  {error}; it is set aside, training goes on from step {step}")
            if damaged:
                hosts.meet("set_aside")
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
        if hosts.writes():
            with storage_errors(self.path, "set aside"):
                (self.path / str(step)).rename(self.path / f"{step}.damaged")
        self._losses.pop(step, None)

    def _read_losses(self) -> None:
        for step in self._manager.all_steps():
            try:
                with storage_errors(self.path, "read"):
                    metrics = self._manager.metrics(step)
            except McrError as error:
                console.say(f"  {error}: the val_loss of step {step} counts as not measured")
                continue
            if metrics:
                self._losses[step] = metrics["val_loss"]

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
