"""Rotary positions in a config.json, in both dialects of transformers, as `Rope` and back."""

import math
from collections.abc import Mapping
from typing import Any

from mcr_jax.model.families import Family
from mcr_jax.model.hf.config_keys import flag, number
from mcr_jax.model.shape import Rope, Yarn

GLOBAL, LOCAL = "full_attention", "sliding_attention"  # layer types
_DEFAULT_THETA = 10_000.0  # of transformers, unless the family has another

_ORIGINAL = "original_max_position_embeddings"
# Required and optional keys of each type.
_KEYS: Mapping[str, tuple[set[str], set[str]]] = {
    "default": (set(), set()),
    "linear": ({"factor"}, {_ORIGINAL}),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor"}, {_ORIGINAL}),
    "yarn": (
        set(),
        {"factor", _ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "truncate"}
        | {"mscale", "mscale_all_dim", "finetuned"},
    ),
}


def ropes(values: Mapping[str, Any], family: Family) -> tuple[Rope, Rope | None]:
    """Reads the ropes of the global and of the local layers; None if those are the same.

    Args:
      values: a config.json without its nulls, the family's defaults filled in.
      family: of the model.

    Raises:
      ValueError: naming the key that is wrong.
    """
    found = []
    if values.get("rope_scaling") or not values.get("rope_parameters"):
        found.append(_scaling(values, family))
    if values.get("rope_parameters"):
        found.append(_parameters(values, family))
    if any(other != found[0] for other in found):
        raise ValueError("rope_scaling and rope_parameters are both there and differ")
    return found[0]


def to_json(rope: Rope) -> dict[str, Any]:
    """Makes the keys of a config.json for a rope that all layers share."""
    keys: dict[str, Any] = {"rope_theta": rope.theta}
    if rope.scaling == "none":
        return keys
    scaling = {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling != "linear":
        scaling[_ORIGINAL] = rope.original_length
    if rope.scaling == "llama3":
        scaling |= {
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
        }
    if isinstance(rope, Yarn):
        names = ("attention_factor", "beta_fast", "beta_slow", "truncate")
        scaling |= {name: getattr(rope, name) for name in names}
    return keys | {"rope_scaling": scaling}


def _scaling(values: Mapping[str, Any], family: Family) -> tuple[Rope, Rope | None]:
    """Reads the dialect of transformers 4, in which published weights are."""
    rope = _rope(values, values.get("rope_scaling", {}), "rope_theta", "rope_scaling", family)
    by_type = family.rope_by_layer_type
    return rope, Rope(theta=_theta(values, "rope_local_base_freq")) if by_type else None


def _parameters(values: Mapping[str, Any], family: Family) -> tuple[Rope, Rope | None]:
    """Reads the dialect of transformers 5."""
    raw, where = values["rope_parameters"], "rope_parameters"
    if not family.rope_by_layer_type:
        return _rope(values, raw, "rope_theta", where, family), None
    if not isinstance(raw, Mapping) or not raw.keys() <= {GLOBAL, LOCAL}:
        raise ValueError(f"{where} of this family are by layer type: {GLOBAL}, {LOCAL}")
    thetas = {GLOBAL: "rope_theta", LOCAL: "rope_local_base_freq"}
    return tuple(
        _rope(values, raw.get(kind) or {}, theta, f"{where}.{kind}", family)
        for kind, theta in thetas.items()
    )


def _rope(values: Mapping[str, Any], raw: Any, theta_key: str, where: str, family: Family) -> Rope:
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where} is not an object")
    raw = {key: value for key, value in raw.items() if value is not None}
    kinds = {str(raw.pop(key)) for key in ("rope_type", "type") if key in raw} or {"default"}
    kind = "/".join(sorted(kinds))
    theta = number({"rope_theta": _theta(values, theta_key), **raw}, "rope_theta", float)
    raw.pop("rope_theta", None)
    if raw.get("partial_rotary_factor") == 1:
        raw.pop("partial_rotary_factor")
    if kind not in family.rope_types:
        known = ", ".join(family.rope_types)
        raise ValueError(f"{where}: rope type {kind!r} is none of this family's: {known}")
    required, optional = _KEYS[kind]
    if odd := (required - raw.keys()) | (raw.keys() - required - optional):
        odd = ", ".join(sorted(odd))
        raise ValueError(f"{where}: keys missing or unknown for rope type {kind!r}: {odd}")
    if kind == "default":
        return Rope(theta=theta)
    if kind == "linear":
        return Rope(theta=theta, scaling=kind, factor=number(raw, "factor", float))
    original = number({_ORIGINAL: values.get("max_position_embeddings"), **raw}, _ORIGINAL)
    if kind == "llama3":
        factors = {name: number(raw, name, float) for name in required}
        return Rope(theta=theta, scaling=kind, original_length=original, **factors)
    if family.rope_by_layer_type and not flag(raw, "truncate", True):
        raise ValueError(f"{where}: truncate = False is not what transformers does in this family")
    return _yarn(values, raw, theta, original)


def _yarn(values: Mapping[str, Any], raw: Mapping[str, Any], theta: float, original: int) -> Yarn:
    if "factor" in raw:
        factor = number(raw, "factor", float)
    else:
        factor = number(values, "max_position_embeddings") / original
    if "attention_factor" in raw:
        attention_factor = number(raw, "attention_factor", float)
    else:
        scales = [number(raw, key, float, 0.0, least=0) for key in ("mscale", "mscale_all_dim")]
        over, under = scales if all(scales) else (1.0, 0.0)
        attention_factor = _magnitude(factor, over) / _magnitude(factor, under)
    return Yarn(
        theta=theta,
        factor=factor,
        original_length=original,
        attention_factor=attention_factor,
        beta_fast=number(raw, "beta_fast", float, 32.0),
        beta_slow=number(raw, "beta_slow", float, 1.0),
        truncate=flag(raw, "truncate", True),
    )


def _magnitude(factor: float, scale: float) -> float:
    """Computes YaRN's attention factor (Peng et al., 2023, equation 22), in DeepSeek's form."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _theta(values: Mapping[str, Any], key: str) -> float:
    return number(values, key, float, _DEFAULT_THETA)
