"""Optimizers and learning rate schedules of config.optim, one entry each."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """One entry of `OPTIMIZERS`.

    Attributes:
      make: returns a transformation from (rate, decayed, weight_decay, fields); `decayed` returns
        the mask of the parameters with weight decay.
      fields: of config.optim that this optimizer uses and others may not.
    """

    make: Callable[..., optax.GradientTransformation]
    fields: tuple[str, ...] = ()


def _adamw(rate: Any, decayed: Any, **fields: Any) -> optax.GradientTransformation:
    return optax.adamw(rate, mask=decayed, **fields)


def _lion(rate: Any, decayed: Any, **fields: Any) -> optax.GradientTransformation:
    return optax.lion(rate, mask=decayed, **fields)


def _adafactor(rate: Any, decayed: Any, weight_decay: float) -> optax.GradientTransformation:
    """Adafactor without momentum. `optax.adafactor` does not scale weight decay by the rate."""
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(weight_decay, decayed),
        optax.scale_by_learning_rate(rate),
    )


def _muon(
    rate: Any, decayed: Any, weight_decay: float, b1: float, b2: float, mu_dtype: str
) -> optax.GradientTransformation:
    """Muon for the matrices of the layers, AdamW for the rest.

    Updates have the size of AdamW's (Liu et al., 2025: 0.2 sqrt(width)), so one rate fits both.
    """
    return muon(
        rate,
        beta=b1,
        adam_b1=b1,
        adam_b2=b2,
        weight_decay=weight_decay,
        adam_weight_decay=weight_decay,
        weight_decay_mask=decayed,
        mu_dtype=mu_dtype,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=0.2,
    )


OPTIMIZERS: Mapping[str, Optimizer] = {
    "adamw": Optimizer(_adamw, ("b1", "b2", "mu_dtype")),
    "adafactor": Optimizer(_adafactor),
    "lion": Optimizer(_lion, ("b1", "b2", "mu_dtype")),
    "muon": Optimizer(_muon, ("b1", "b2", "mu_dtype")),
}

# Schedules from (rate, steps after the warm-up).
SCHEDULES: Mapping[str, Callable[[float, int], optax.Schedule]] = {
    "cosine": lambda rate, steps: optax.cosine_decay_schedule(rate, max(steps, 1), alpha=0.1),
    "linear": lambda rate, steps: optax.linear_schedule(rate, 0.1 * rate, steps),
    "constant": lambda rate, steps: optax.constant_schedule(rate),
}


def optimizer(
    *,
    learning_rate: float,
    warmup_steps: int,
    steps: int,
    weight_decay: float,
    clip_norm: float,
    name: str = "adamw",
    schedule: str = "cosine",
    mu_dtype: str = "float32",
    **fields: float,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns the optimizer `name` under global-norm clipping, and its schedule.

    The rate rises linearly over `warmup_steps`, then follows `schedule` until `steps`: "cosine" and
    "linear" fall to a tenth. Norm scales and biases are not decayed. The mean of gradients is in
    `mu_dtype`, all other state in float32 for weights of any dtype. `fields` are b1 and b2.
    """
    warmup = min(warmup_steps, max(steps - 1, 0))
    after = SCHEDULES[schedule](learning_rate, steps - warmup)
    rate = optax.join_schedules([optax.linear_schedule(0, learning_rate, warmup), after], [warmup])
    entry, fields = OPTIMIZERS[name], fields | {"mu_dtype": mu_dtype}
    used = {field: fields[field] for field in entry.fields}
    tx = entry.make(rate, _decayed, weight_decay=weight_decay, **used)
    return _in_float32(optax.chain(optax.clip_by_global_norm(clip_norm), tx)), rate


def _decayed(params: Any) -> Any:
    """Masks the parameters with weight decay: all but norm scales and biases."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not _name(path).endswith(("norm", "bias")), params
    )


def _matrices(params: Any) -> Any:
    """Returns input and output axes of the matrices in stacked layers; None for the rest."""

    def axes(path: Any, leaf: Any) -> MuonDimensionNumbers | None:
        name, last = _name(path), leaf.ndim - 1
        if not name.startswith("layers.") or name.endswith(("norm", "bias")):
            return None
        if name.endswith((".o", ".down", "_lora_a")):
            return MuonDimensionNumbers(tuple(range(1, last)), last)
        return MuonDimensionNumbers(1, tuple(range(2, last + 1)))

    return jax.tree_util.tree_map_with_path(axes, params)


def _in_float32(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Wraps a transformation of float32 for weights of any dtype."""

    def widened(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def init(params: Any) -> Any:
        return tx.init(widened(params))

    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        return tx.update(widened(grads), state, widened(params))

    return optax.GradientTransformation(init, update)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
