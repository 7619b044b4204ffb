"""Checkpoints of a training run, through orbax: asynchronous, whole or absent."""

import os
from pathlib import Path

import orbax.checkpoint as ocp

from mcr_jax import console
from mcr_jax.errors import McrError
from mcr_jax.model.store import storage_errors
from mcr_jax.train.step import State


class Checkpoints:
    """The checkpoints in one folder, the newest `keep` of them.

    A save that a kill interrupts leaves nothing that `restore` would take: orbax writes aside and
    renames. Every method raises McrError when the storage fails; what was saved before is kept.
    """

    def __init__(self, path: Path, keep: int):
        """Opens `path`, creating it."""
        self.path = path.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        with storage_errors(path, "open"):
            self.path.mkdir(parents=True, exist_ok=True)  # orbax says nothing of a file in the way
            self._manager = ocp.CheckpointManager(self.path, options=options)

    @property
    def latest(self) -> int | None:
        """The step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: State) -> None:
        """Starts saving `state`; waits only until it is copied off the devices."""
        params, rest = _halves(state)
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(params), rest=ocp.args.StandardSave(rest)
        )
        with storage_errors(self.path, "save"):
            self._manager.save(step, args=args)

    def restore(self, step: int, like: State) -> State:
        """Reads a checkpoint onto the shardings of `like`, a State of ShapeDtypeStructs."""
        params, rest = _halves(like)
        args = ocp.args.Composite(
            params=ocp.args.StandardRestore(params), rest=ocp.args.StandardRestore(rest)
        )
        with storage_errors(self.path, "read"):
            found = self._manager.restore(step, args=args)
        return State(params=found["params"], **found["rest"])

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
                os.replace(self.path / str(other), self.path / f"{other}.damaged")
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


def _halves(state: State) -> tuple[dict, dict]:
    return state.params, {"step": state.step, "opt_state": state.opt_state}
