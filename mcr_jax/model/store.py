"""Decoders of an experiment: before training, and of a checkpoint.

A checkpoint has two items: `params`, a nested dict of the decoder's parameters, or of the adapters
where these alone were trained, and `rest`, which only training reads.
"""

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh

from mcr_jax import console
from mcr_jax.errors import McrError, Stopped, UsageError
from mcr_jax.model import hf, lora
from mcr_jax.model.abstract import abstract_decoder, initial_params, parts
from mcr_jax.model.decoder import Decoder
from mcr_jax.model.shape import DecoderConfig
from mcr_jax.model.sharding import abstract, one_device, shardings
from mcr_jax.model_specs import OWN, UNTRAINED
from mcr_jax.workdir import storage_path

_CLIENTS = ("tensorflow", "gcsfs", "fsspec", "google", "aiohttp")  # modules, of gs:// etc.
_FAILED_READ = "Encountered error while reading array index"  # message of orbax


def named(
    name: str,
    config: DecoderConfig,
    mesh: Mesh,
    *,
    checkpoints: str | Path,
    which: str,
    seed: int,
) -> tuple[Decoder, str]:
    """Loads an experiment's decoder by name, adapters merged; also says where it is from.

    Args:
      name: one of `model_specs.OWN`.
      config: of the decoder; its dtype is that of the result, whatever the stored one is.
      mesh: to shard the parameters over.
      checkpoints: their folder or address.
      which: of them, as in `trained`.
      seed: of the run.

    Raises:
      UsageError: another name.
      McrError: as `starting_params` and `trained`.
    """
    if name not in OWN:
        raise UsageError(f"there is no model {name!r}: there are {', '.join(OWN)}")
    if name == UNTRAINED:
        return untrained(config, seed, mesh), config.folder or f"drawn from seed {seed}"
    model, step = trained(checkpoints, config, mesh, which, seed)
    return model, f"checkpoint of step {step}"


def weights_bytes(config: DecoderConfig, dtype: str) -> int:
    """Returns the bytes of a decoder's weights in a dtype, without adapters."""
    shapes = jax.tree.leaves(abstract_decoder(dataclasses.replace(config, lora=None))[1])
    return sum(leaf.size for leaf in shapes) * jax.numpy.dtype(dtype).itemsize


def starting_params(config: DecoderConfig, seed: int, mesh: Mesh) -> Any:
    """Returns the parameters before training: of config.folder, or drawn from `seed` if it is "".

    Adapters are not included.

    Raises:
      McrError: config.folder cannot be loaded.
    """
    config = dataclasses.replace(config, lora=None)
    shapes = abstract_decoder(config)[1]
    placed = shardings(mesh, shapes)
    if config.folder:
        return hf.read_params(config.folder, config, abstract(shapes, placed), config.dtype)
    return jax.jit(lambda: initial_params(config, seed), out_shardings=placed)()


def untrained(config: DecoderConfig, seed: int, mesh: Mesh | None = None) -> Decoder:
    """Returns the decoder before training with `seed`, on `mesh` or the first device."""
    config = dataclasses.replace(config, lora=None)
    params = starting_params(config, seed, mesh or one_device())
    return nnx.merge(abstract_decoder(config)[0], params)


def trained(
    folder: str | Path,
    config: DecoderConfig,
    mesh: Mesh | None = None,
    which: str = "newest",
    seed: int = 0,
) -> tuple[Decoder, int]:
    """Loads the decoder of a checkpoint, adapters merged, on `mesh` or one device; and its step.

    Args:
      folder: of the checkpoints, or an address such as gs://BUCKET/RUN.
      config: of the decoder that was trained.
      mesh: to shard the parameters over.
      which: "newest", a step, or "best", that of the lowest validation loss.
      seed: of the run; draws the weights below the adapters where config.folder is "".

    Raises:
      McrError: there is none, or it is damaged or of another shape.
    """
    if config.lora:
        model, step = adapted(folder, config, mesh, which, seed)
        return lora.merge(model, keep=False), step
    graph, shapes = abstract_decoder(config)
    params, step = _restored(folder, shapes, mesh or one_device(), which)
    return nnx.merge(graph, params), step


def adapted(
    folder: str | Path,
    config: DecoderConfig,
    mesh: Mesh | None = None,
    which: str = "newest",
    seed: int = 0,
) -> tuple[Decoder, int]:
    """Loads a trained model with its adapters beside the weights (`trained` merges them)."""
    mesh = mesh or one_device()
    graph, shapes = abstract_decoder(config)
    adapters, step = _restored(folder, parts(shapes)[0], mesh, which)
    return nnx.merge(graph, starting_params(config, seed, mesh), adapters), step


def chosen_step(folder: str | Path, which: str) -> int:
    """Returns the step that `trained` would load; loads nothing.

    Raises:
      McrError: there is none, or they cannot be listed.
    """
    with _opened(folder) as manager:
        return _step(manager, folder, which)


@contextlib.contextmanager
def _opened(folder: str | Path) -> Iterator[ocp.CheckpointManager]:
    """Opens the checkpoints in a folder or at an address for reading."""
    options = ocp.CheckpointManagerOptions(read_only=True, lightweight_initialize=True)
    with (
        storage_errors(folder, "read"),
        ocp.CheckpointManager(storage_path(folder), options=options) as manager,
    ):
        yield manager


def _restored(folder: str | Path, shapes: Any, mesh: Mesh, which: str) -> tuple[Any, int]:
    """Restores the parameters of a checkpoint, and its step."""
    like = abstract(shapes, shardings(mesh, shapes))
    with _opened(folder) as manager:
        step = _step(manager, folder, which)
        args = ocp.args.Composite(params=ocp.args.StandardRestore(like))
        try:
            with storage_errors(folder, "read"):
                return manager.restore(step, args=args)["params"], step
        except McrError as error:
            raise McrError(
                f"{error}; if it is damaged, rename the folder {step} there and run `mcr train` "
                "again, which goes on from the checkpoint before"
            ) from error


def _step(manager: ocp.CheckpointManager, folder: str | Path, which: str) -> int:
    steps = manager.all_steps()
    if not steps:
        raise McrError(f"{folder}: no checkpoint here; run `mcr train` first")
    if which == "newest":
        return max(steps)
    if which.isdecimal():
        if int(which) not in steps:
            raise McrError(f"{folder}: no checkpoint of step {which}")
        return int(which)
    losses = val_losses(manager, folder)
    if not losses:
        raise McrError(
            f"{folder}: no checkpoint here has a validation loss; train with a val split, "
            "or set config.sample.checkpoint to newest"
        )
    return min(losses, key=lambda step: (losses[step], -step))


def val_losses(manager: ocp.CheckpointManager, folder: str | Path) -> dict[int, float]:
    """Returns the validation loss by step, where one is stored and can be read."""
    losses = {}
    for step in manager.all_steps():
        try:
            with storage_errors(folder, "read"):
                if metrics := manager.metrics(step):
                    losses[step] = float(dict(metrics)["val_loss"])
        except Stopped:
            raise
        except (McrError, TypeError) as error:
            console.say(f"  {error}: the val_loss of step {step} counts as not measured")
    return losses


@contextlib.contextmanager
def storage_errors(folder: str | Path, what: str) -> Iterator[None]:
    """Turns a fault of the storage below orbax into one McrError line."""
    # Faults that orbax and absl log are raised, too; asyncio logs every failed write but the first.
    for noisy in ("orbax", "absl", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    sys.unraisablehook = _print_unless_repeated
    # Each layer below has faults of its own: OSError from Python, ValueError from TensorStore (it
    # wraps absl::Status), KeyError and RuntimeError from orbax, ImportError without the client of
    # gs:// or the like, and that client's own. Orbax wraps a failed read in a bare Exception.
    try:
        yield
    except Exception as raised:
        error = raised.__cause__ if type(raised) is Exception else raised
        known = (OSError, ValueError, KeyError, RuntimeError, ImportError)
        if not isinstance(error, known) and type(error).__module__.split(".")[0] not in _CLIENTS:
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        full = any("No space left" in line for line in lines)
        reason = "no space left on the device" if full else lines[0][:200]
        raise McrError(f"{folder}: cannot {what} a checkpoint: {reason}") from error


def _print_unless_repeated(fault: "sys.UnraisableHookArgs") -> None:
    """Prints a fault that Python cannot raise, unless it is a read abandoned after another failed.

    After the first fault, which is raised, TensorStore's callbacks find the event loop closed, and
    the collected coroutines would print tens of kilobytes.
    """
    message = str(fault.exc_value)
    closed = fault.exc_type is RuntimeError and message == "Event loop is closed"
    if not closed and not (fault.exc_type is Exception and message.startswith(_FAILED_READ)):
        sys.__unraisablehook__(fault)
