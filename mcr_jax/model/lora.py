"""Low-rank adapters on a decoder (Hu et al., 2021): add, split, merge, and files as PEFT's.

    model = lora.add(model, LoraConfig(rank=16, alpha=32), seed=0)
    graph, adapters, frozen = lora.split(model)     # differentiate by `adapters` alone
    model = nnx.merge(graph, adapters, frozen)
    lora.save(model, "adapters")                    # PEFT loads it
    plain = lora.merge(model)                       # `hf.save` exports it

Adapters are parameters of the decoder beside the weights they adapt: for `q` [L, in..., out...]
there are `q_lora_a` [L, in..., r] and `q_lora_b` [L, r, out...]. `model.decoder` applies them.
"""

import collections
import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from mcr_jax.errors import McrError
from mcr_jax.model.abstract import abstract_decoder, initial_params, parts
from mcr_jax.model.decoder import Decoder
from mcr_jax.model.families import layer_tensors
from mcr_jax.model.hf.safetensors_files import DTYPES, new_folder, opened, write
from mcr_jax.model.hf.tensor_names import Placed, fused_rows
from mcr_jax.model.hf.weight_files import grouped
from mcr_jax.model.shape import PROJECTIONS, DecoderConfig, LoraConfig
from mcr_jax.model.sharding import make_mesh, shardings

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"

_PEFT_PREFIX = "base_model.model."  # of the names of the model that PEFT wraps
_PREFIX = re.compile(r"base_model\.model\.((?:model\.|language_model\.){1,2})layers\.")
_VISION = re.compile(r"\.(vision_tower|multi_modal_projector)\.")  # `hf` skips it, too

# Keys of adapter_config.json that are read or change nothing. Any other one is refused, unless its
# value is false, null or empty.
_PASSED = """
r lora_alpha lora_dropout target_modules use_rslora rank_pattern alpha_pattern
auto_mapping base_model_name_or_path ensure_weight_tying inference_mode layers_pattern
megatron_core peft_version qalora_group_size revision task_type
"""
_ALLOWED = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),  # others change weights
}


def add(model: Decoder, config: LoraConfig, seed: int) -> Decoder:
    """Returns `model`, weights shared, with fresh float32 adapters, which change no logit.

    Raises:
      ValueError: `model` has adapters already, or the rank is larger than a side of a weight.
    """
    _refuse_adapted(model)
    shape = dataclasses.replace(model.config, lora=config)
    return _with(model, shape, initial(shape, seed, _mesh(model)))


def initial(config: DecoderConfig, seed: int, mesh: Mesh) -> Any:
    """Draws fresh adapters of a decoder of this shape, a nested dict on `mesh`."""

    def draw() -> Any:  # the compiler drops the drawing of everything else
        return parts(initial_params(config, seed))[0]

    return jax.jit(draw, out_shardings=shardings(mesh, jax.eval_shape(draw)))()


def split(model: Decoder) -> tuple[Any, Any, Any]:
    """Splits a model into graph definition, adapters and the rest.

    Both are nested dicts of arrays; `nnx.merge(graph, adapters, frozen)` is the decoder. A step
    that differentiates by the adapters has gradients and optimizer state for them alone.

    Raises:
      ValueError: there are no adapters.
    """
    _adapted(model)
    graph, adapters, frozen = nnx.split(model, nnx.LoRAParam, ...)
    return graph, nnx.to_pure_dict(adapters), nnx.to_pure_dict(frozen)


def merge(model: Decoder, *, keep: bool = True) -> Decoder:
    """Returns the decoder with merged weights: W + scale A B, in float32, cast to W's dtype.

    Unless `keep`, `model` cannot be used afterwards: its weights are freed one projection after the
    other, so there are never two copies of all.

    Raises:
      ValueError: there are no adapters.
    """
    config = _adapted(model)
    params = _params(model)
    layers = parts(params)[1]["layers"]

    def merged(w: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        low_rank = jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST)
        return (w.astype(jnp.float32) + config.scale * low_rank).astype(w.dtype)

    for name in config.targets:
        stacked = (layers[name], *(params["layers"][f"{name}_lora_{half}"] for half in "ab"))
        # Layer by layer, so that one layer's float32 is in memory at a time.
        one_by_one = jax.jit(
            lambda stacked: jax.lax.map(lambda layer: merged(*layer), stacked),
            out_shardings=layers[name].sharding,
        )
        layers[name] = one_by_one(stacked)
        if not keep:
            jax.block_until_ready(layers[name])
            for old in stacked:
                old.delete()
    plain = dataclasses.replace(model.config, lora=None)
    return nnx.merge(abstract_decoder(plain)[0], params | {"layers": layers})


def save(model: Decoder, folder: str | Path) -> None:
    """Writes the adapters as PEFT does, in their dtype; whole or not at all.

    Where a family's files fuse n projections, their adapters become one of n times the rank, whose
    B is block-diagonal: it computes the same.

    Args:
      model: with adapters; its weights are not written.
      folder: must not exist, or be empty.

    Raises:
      ValueError: there are no adapters.
      McrError: the folder is taken, or cannot be written.
    """
    config, folder = _adapted(model), Path(folder)
    layers = _params(model)["layers"]
    tensors = {}
    for own, placed in _table(model.config, "model.", in_blocks=True).items():
        for name, values in zip(placed.names, np.asarray(layers[own]), strict=True):
            tensors[name] = placed.to_file(values, tensors.get(name))
    keys = _to_json(config, _modules(model.config), model.config.folder)
    with new_folder(folder, CONFIG) as aside:
        (aside / CONFIG).write_text(json.dumps(keys, indent=2) + "\n", encoding="utf-8")
        write(tensors, aside / TENSORS)


def load(model: Decoder, folder: str | Path, *, dtype: str | None = None) -> Decoder:
    """Returns `model`, weights shared, with the adapters of a PEFT folder.

    Args:
      model: without adapters; they go onto the mesh that it is on.
      folder: with adapter_config.json and adapter_model.safetensors, by `save` or by PEFT. Of
        adapters of a multimodal model, those of the text half are read.
      dtype: "float32", "bfloat16" or "float16" to cast to; None keeps each tensor's.

    Raises:
      ValueError: `model` has adapters already.
      McrError: a file is missing or broken, adapter_config.json asks for something that the decoder
        does not compute, or tensors are missing, too many or misshapen.
    """
    _refuse_adapted(model)
    path, tensors = Path(folder) / CONFIG, Path(folder) / TENSORS
    found = _read_tensors(tensors)
    prefix = next((m[1] for name in found if (m := _PREFIX.match(name))), "model.")
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
        config = _from_json(keys, prefix, model.config)
        shape = dataclasses.replace(model.config, lora=config)
    except OSError as error:
        raise McrError(f"{path}: cannot read: {error.strerror}") from error
    except ValueError as error:  # of JSON, too
        raise McrError(f"{path}: {error}") from error
    in_blocks = bool(keys.get("rank_pattern"))
    table = _table(shape, prefix, in_blocks)
    if faults := _faults(table, found):
        raise McrError(f"{tensors}: {len(faults)} tensors are wrong: {grouped(faults)}")
    if in_blocks:  # of fused projections, those without an adapter have a block of zeros
        used = [name for name in config.targets if _any(table[f"{name}_lora_a"], found)]
        lora = dataclasses.replace(config, targets=tuple(used) or config.targets)
        shape = dataclasses.replace(shape, lora=lora)
        table = _table(shape, prefix, in_blocks)

    def stack(placed: Placed, sharding: NamedSharding) -> jax.Array:
        parts = [found[name][placed.region] for name in placed.names]
        layers = [placed.from_file(part, placed.shape[1:]) for part in parts]
        values = np.stack(layers).astype(jnp.dtype(dtype or layers[0].dtype))
        return jax.make_array_from_callback(values.shape, sharding, values.__getitem__)

    shapes = {name: jax.ShapeDtypeStruct(p.shape, jnp.float32) for name, p in table.items()}
    where = shardings(_mesh(model), {"layers": shapes})["layers"]
    adapters = {name: stack(placed, where[name]) for name, placed in table.items()}
    return _with(model, shape, {"layers": adapters})


def _params(model: Decoder) -> Any:
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def _with(model: Decoder, config: DecoderConfig, adapters: Any) -> Decoder:
    return nnx.merge(abstract_decoder(config)[0], _params(model), adapters)


def _refuse_adapted(model: Decoder) -> None:
    if model.config.lora is not None:
        raise ValueError("the model has adapters already; merge them first")


def _adapted(model: Decoder) -> LoraConfig:
    if model.config.lora is None:
        raise ValueError("the model has no adapters; add or load some first")
    return model.config.lora


def _mesh(model: Decoder) -> Mesh:
    """Returns the mesh that the model is on."""
    sharding = model.embedding[...].sharding
    if isinstance(sharding, NamedSharding):
        return sharding.mesh
    return make_mesh(1, 1, 1, list(sharding.device_set))


def _modules(config: DecoderConfig) -> dict[str, str]:
    """Returns the module within a layer of each projection; fused ones have the same."""
    tensors = layer_tensors(config)
    return {name: tensors[name].removesuffix(".weight") for name in PROJECTIONS}


def _table(config: DecoderConfig, prefix: str, in_blocks: bool) -> dict[str, Placed]:
    """Maps each adapter to its tensors in the file: lora_A [r, in], lora_B [out, r], by layer.

    Fused projections have rows of B each. If `in_blocks`, each also has columns of B and rows of A;
    otherwise they share all of them.
    """
    table, modules, rank = {}, _modules(config), config.lora.rank
    sizes = {name: math.prod(config.projection(name)[1]) for name in PROJECTIONS}
    rows = fused_rows({name: (modules[name], sizes[name]) for name in PROJECTIONS})
    ranks = fused_rows({name: (modules[name] if in_blocks else name, rank) for name in PROJECTIONS})
    for target in config.lora.targets:
        inputs, outputs = config.projection(target)
        (row, height), (column, width) = rows[target], ranks[target]
        halves = {
            "A": ((*inputs, rank), len(inputs), (column, 0), (width, math.prod(inputs))),
            "B": ((rank, *outputs), 1, (row, column), (height, width)),
        }
        for half, (shape, axes, *place) in halves.items():
            layers = (f"{_PEFT_PREFIX}{prefix}layers.{i}" for i in range(config.layers))
            names = tuple(f"{layer}.{modules[target]}.lora_{half}.weight" for layer in layers)
            shape = (config.layers, *shape)
            table[f"{target}_lora_{half.lower()}"] = Placed(shape, names, True, axes, *place)
    return table


def _any(placed: Placed, found: Mapping[str, np.ndarray]) -> bool:
    return any(found[name][placed.region].any() for name in placed.names)


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    with opened(path) as file:
        names = [name for name in file.keys() if not _VISION.search(name)]  # noqa: SIM118
        for name in names:
            if (dtype := file.get_slice(name).get_dtype()) not in DTYPES:
                raise McrError(f"{path}: {name} is of dtype {dtype}, none of {', '.join(DTYPES)}")
        return {name: file.get_tensor(name) for name in names}


def _faults(table: Mapping[str, Placed], found: Mapping[str, np.ndarray]) -> list[tuple[str, str]]:
    """Lists tensors that are missing, too many, misshapen or of mixed dtypes."""
    expected = {name: placed.in_file for placed in table.values() for name in placed.names}
    faults = [(name, "is missing") for name in expected if name not in found]
    for name, values in found.items():
        if name not in expected:
            faults.append((name, "is not of these adapters"))
        elif values.shape != expected[name]:
            faults.append((name, f"is {list(values.shape)}, not {list(expected[name])}"))
    for placed in table.values():
        dtypes = sorted({found[name].dtype.name for name in placed.names if name in found})
        if len(dtypes) > 1:
            faults.append((placed.names[0], f"and its like are of {', '.join(dtypes)}"))
    return faults


def _to_json(config: LoraConfig, modules: Mapping[str, str], base: str) -> dict[str, Any]:
    """Makes adapter_config.json, with old keys only: PEFT refuses those that it does not know."""
    alpha = config.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "auto_mapping": None,
        "base_model_name_or_path": base or None,
        "revision": None,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": config.dropout,
        "target_modules": sorted({modules[name].split(".")[-1] for name in config.targets}),
        "use_rslora": config.rslora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        **_patterns(config, modules),
    }


def _patterns(config: LoraConfig, modules: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Returns PEFT's rank and alpha of each fused module, whose scale is that of all others."""
    fused, alpha = collections.Counter(modules.values()), config.alpha
    parts = {modules[name].split(".")[-1]: fused[modules[name]] for name in config.targets}
    parts = {end: n for end, n in parts.items() if n > 1}
    return {
        "rank_pattern": {end: n * config.rank for end, n in parts.items()},
        "alpha_pattern": {
            end: alpha * (n**0.5 if config.rslora else n) for end, n in parts.items()
        },
    }


def _from_json(keys: Any, prefix: str, config: DecoderConfig) -> LoraConfig:
    """Reads a parsed adapter_config.json. Raises ValueError naming the key that is wrong."""
    if not isinstance(keys, dict):
        raise ValueError("not an object")
    if "peft_type" not in keys:
        raise ValueError("peft_type is missing")
    for key, value in keys.items():
        allowed = _ALLOWED.get(key)
        if allowed is not None and value not in allowed:
            raise ValueError(f"{key} = {value!r}: none of {', '.join(map(repr, allowed))}")
        if key == "layers_to_transform" and value == [*range(config.layers)]:
            continue
        if allowed is None and key not in _PASSED.split() and value:
            raise ValueError(f"{key} = {value!r}: these adapters do not have that")
    modules = _modules(config)
    lora = LoraConfig(
        rank=keys.get("r", 8),
        alpha=keys.get("lora_alpha", 8),
        dropout=keys.get("lora_dropout") or 0.0,
        rslora=bool(keys.get("use_rslora")),
        targets=_targets(keys.get("target_modules"), prefix, modules, config.layers),
    )
    ours = _patterns(lora, modules)
    patterns = {key: keys[key] for key in ours if keys.get(key)}
    if patterns and patterns != ours:
        key, value = next(iter(patterns.items()))
        raise ValueError(f"{key} = {value!r}: these adapters have one rank and one alpha")
    return lora


def _targets(raw: Any, prefix: str, modules: Mapping[str, str], layers: int) -> tuple[str, ...]:
    """Finds the projections of target_modules: "all-linear", a regex, or ends of names."""
    if isinstance(raw, str) and raw.lower() == "all-linear":
        return PROJECTIONS
    names = {
        target: [f"{prefix}layers.{i}.{module}" for i in range(layers)]
        for target, module in modules.items()
    }
    if isinstance(raw, str):
        given = {raw: raw}
    elif raw and isinstance(raw, list) and all(isinstance(end, str) for end in raw):
        given = {end: rf"(.*\.)?{re.escape(end)}" for end in raw}
    else:
        raise ValueError(f"target_modules = {raw!r}: neither names nor a regular expression")
    try:
        patterns = {end: re.compile(pattern) for end, pattern in given.items()}
    except re.error as error:
        raise ValueError(f"target_modules = {raw!r}: not a regular expression") from error
    for end, pattern in patterns.items():
        if not any(pattern.fullmatch(name) for of_target in names.values() for name in of_target):
            raise ValueError(f"target_modules: {end!r} names nothing that can have adapters")
    targets = []
    for target, of_target in names.items():
        hits = sum(any(p.fullmatch(name) for p in patterns.values()) for name in of_target)
        if 0 < hits < layers:
            raise ValueError(
                f"target_modules = {raw!r}: {modules[target]} in {hits} of {layers} layers; "
                "these adapters are in all or in none"
            )
        targets += [target] * bool(hits)
    return tuple(targets)
