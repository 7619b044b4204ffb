"""Checkpoints of a training run: asynchronous, atomic orbax saves, and which ones are kept."""

import contextlib
import itertools
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
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

_LEAST_COMPRESSION = 0.85  # smallest ratio of a checkpoint's bytes on disk to those in memory
RUN = "run.json"  # beside the steps: the identity of the run that saved them


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Returns False: `hosts.listening` handles preemption, and jax counts calls, not steps."""
        return False


class Checkpoints:
    """Checkpoints in one folder: the newest ones, and those of the lowest validation loss.

    Saves are atomic: orbax writes aside and renames, or adds a commit marker where an object store
    cannot rename. In a multi-host run every process calls every method. Every method raises
    McrError when the storage fails; earlier checkpoints are kept.
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
          keep: number of the newest checkpoints that are kept.
          keep_best: number of checkpoints with the lowest val_loss that are kept as well.
          run: identity of the run as JSON data, written beside the checkpoints.

        Raises:
          UsageError: not all processes see the folder, or its checkpoints are of another run.
        """
        self.path = storage_path(path)
        self._kept = keep + keep_best
        self._losses: dict[int, float] = {}  # val_loss of the checkpoints that have one
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Kept(keep, keep_best, self._losses),
            best_fn=lambda metrics: metrics["val_loss"],  # orbax stores no metrics without it
            best_mode="min",
            cleanup_tmp_directories=True,
            single_host_load_and_broadcast=True,  # the same steps on all despite NFS caches
            lightweight_initialize=True,  # opens despite unreadable metrics
        )
        with storage_errors(self.path, "open"):
            self.path.mkdir(parents=True, exist_ok=True)  # raises where a file has this name
            self._refuse_unshared()
            self._manager = _Manager(self.path, options=options)
        if run is not None:
            self._refuse_other(json.loads(json.dumps(run)))
        self._losses.update(val_losses(self._manager, self.path))

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return max(self._steps(), default=None)

    @property
    def best(self) -> int | None:
        """Step of the checkpoint with the lowest val_loss, the later of equal ones, or None."""
        measured = [step for step in self._steps() if step in self._losses]
        return min(measured, key=lambda step: (self._losses[step], -step), default=None)

    def require_room(self, like: State, saves: int) -> None:
        """Raises McrError if a local disk has too little space for `saves` more checkpoints.

        Args:
          like: abstract shapes of the state.
          saves: number of checkpoints until the end of the run.
        """
        if "://" in str(self.path):
            return
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like))
        # A checkpoint is deleted after the one that replaces it was written.
        more = min(saves, self._kept + 1 - len(self._steps()))
        disk.require(
            Path(self.path),
            max(0, more) * size * _LEAST_COMPRESSION,
            f"{more} more checkpoints of {size / 1e9:.3g} GB",
            "keep fewer with config.train.keep and keep_best, or name another place with "
            "config.train.checkpoints",
        )

    def losses(self, until: int) -> dict[int, float]:
        """Returns val_loss by step of the checkpoints up to step `until` that have one."""
        return {step: loss for step, loss in sorted(self._losses.items()) if step <= until}

    def history(self, step: int) -> list[tuple[int, float]]:
        """Reads the (step, validation loss) pairs stored with a checkpoint; [] without any."""
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
        """Starts an asynchronous save; returns when `state` was copied off the devices.

        Args:
          step: of the state.
          state: sharded over all processes.
          val_loss: validation loss at `step`; None if not measured.
          history: (step, validation loss) of all evaluations. Early stopping needs them, and
            metrics.jsonl may be lost with its machine.
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
        with self._raising_on_all(f"another process cannot read step {step}"):
            return self._read(step, like)

    def restore_newest(self, like: State) -> tuple[State | None, int]:
        """Reads the newest checkpoint that is not damaged, and its step; (None, 0) without any.

        Newer, damaged ones are renamed to STEP.damaged and reported.

        Raises:
          McrError: all are damaged, and left as they are; or a damaged one cannot be renamed.
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
        """Returns when all saves are on disk."""
        with storage_errors(self.path, "save"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for all saves and ends orbax's threads."""
        with storage_errors(self.path, "save"):
            self._manager.close()

    def _steps(self) -> list[int]:
        """Steps with a whole checkpoint. In multi-host runs orbax returns numpy's integers."""
        return [int(step) for step in self._manager.all_steps()]

    def _read(self, step: int, like: State) -> State:
        """Reads this process's shards without a barrier: a failure must not block the others."""
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
        with self._raising_on_all(f"process 0 cannot set step {step} aside"):
            if hosts.writes():
                with storage_errors(self.path, "set aside"):
                    names = (f"{step}.damaged{number or ''}" for number in itertools.count())
                    free = next(name for name in names if not (self.path / name).exists())
                    (self.path / str(step)).rename(self.path / free)
        self._losses.pop(step, None)

    def _refuse_other(self, run: Mapping[str, Any]) -> None:
        """Raises UsageError if the checkpoints are of another run; without any writes `run`."""
        file, otherwise = self.path / RUN, "of another run, or unreadable; see process 0"
        try:
            with self._raising_on_all(otherwise), storage_errors(self.path, "open"):
                known = _read_run(file)
                if known is not None and self._steps():
                    _require_same_run(self.path, known, run)
                elif known != run and hosts.writes():
                    whole = self.path / f".{RUN}"
                    whole.write_text(json.dumps(run, indent=1, sort_keys=True) + "\n")
                    whole.replace(file)
        except McrError:
            self._manager.close()
            raise

    @contextlib.contextmanager
    def _raising_on_all(self, otherwise: str) -> Iterator[None]:
        """Raises a process's McrError on all: its own, or `otherwise` for that of another."""
        fault = None
        try:
            yield
        except Stopped:  # SIGTERM: the storage has no fault
            raise
        except McrError as error:
            fault = error
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
    """Keeps the newest `keep` checkpoints and the `keep_best` with the lowest loss."""

    def __init__(self, keep: int, keep_best: int, losses: dict[int, float]):
        self._keep, self._keep_best, self._losses = keep, keep_best, losses

    def should_preserve(
        self,
        checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
        *,
        context: checkpoint_managers.PreservationContext,
    ) -> Sequence[bool]:
        """Returns for each of `checkpoints`, ordered by step, whether it is kept."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        measured = [step for step in steps if step in self._losses]
        best = sorted(measured, key=lambda step: (self._losses[step], -step))[: self._keep_best]
        kept = {*steps[-self._keep :], *best}
        return [step in kept for step in steps]


def _halves(state: State) -> tuple[dict, dict]:
    return state.params, {"step": state.step, "opt_state": state.opt_state}


def _read_run(file: Any) -> Any:
    """Reads run.json; None without one."""
    try:
        return json.loads(file.read_text()) if file.exists() else None
    except ValueError as error:
        raise McrError(
            f"{file}: unreadable ({error}); delete it if the checkpoints there are of this run"
        ) from error


def _require_same_run(path: Any, known: Any, run: Mapping[str, Any]) -> None:
    """Raises UsageError if `known`, the identity of the checkpoints in `path`, is not `run`."""
    old, new = _flat(known), _flat(run)
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    if names:
        parts = [f"{n} {old.get(n, 'not set')}, now {new.get(n, 'not set')}" for n in names[:3]]
        parts += [f"and {len(names) - 3} more"] * (len(names) > 3)
        raise UsageError(
            f"{path}: these checkpoints are of another run: {'; '.join(parts)}; use another "
            "config.train.checkpoints or --workdir"
        )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Returns the leaves of nested data by dotted name."""
    if not isinstance(value, Mapping):
        return {name: value}
    return {
        key: leaf
        for part, inside in value.items()
        for key, leaf in _flat(inside, f"{name}.{part}" if name else str(part)).items()
    }
