"""Low-rank adapters on a decoder (Hu et al., 2021): added, trained, merged, kept as PEFT does.

    model = lora.add(model, LoraConfig(rank=16, alpha=32), seed=0)
    graph, adapters, frozen = lora.split(model)     # differentiate by `adapters` alone
    model = nnx.merge(graph, adapters, frozen)
    lora.save(model, "adapters")                    # what PEFT loads
    plain = lora.merge(model)                       # what `hf.save` exports

Adapters are parameters of the decoder beside the weights they adapt: for `q` [L, in..., out...]
there are `q_lora_a` [L, in..., r] and `q_lora_b` [L, r, out...]. What they compute stands in
`model.decoder`.
"""

import dataclasses
import json
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
from mcr_jax.model.blueprint import blueprint, initial_params, parts
from mcr_jax.model.decoder import Decoder
from mcr_jax.model.hf.safetensors_files import DTYPES, new_folder, opened, write
from mcr_jax.model.hf.tensor_names import Placed
from mcr_jax.model.hf.weight_files import grouped
from mcr_jax.model.shape import PROJECTIONS, DecoderConfig, LoraConfig
from mcr_jax.model.sharding import make_mesh, shardings

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"

_MODULES = {  # transformers' names within a layer
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_WRAPPED = "base_model.model."  # what PEFT puts before the names of the model it wraps
_PREFIX = re.compile(r"base_model\.model\.((?:model\.|language_model\.){1,2})layers\.")
_VISION = re.compile(r"\.(vision_tower|multi_modal_projector)\.")  # `hf` takes the text half, too

# Keys of adapter_config.json with more than one value in use. Any key that is not here turns
# something on that is not here, unless its value is false, null or empty.
_READ = frozenset({"r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora"})
_HARMLESS = frozenset(
    (
        *("auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "inference_mode"),
        *("layers_pattern", "megatron_core", "peft_version", "qalora_group_size", "revision"),
        "task_type",
    )
)
_ALLOWED = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),  # others change the weights
}


def add(model: Decoder, config: LoraConfig, seed: int) -> Decoder:
    """The same decoder with fresh float32 adapters, which change no logit.

    The weights are shared with `model`, not copied.

    Raises:
      ValueError: `model` has adapters already, or the rank is larger than a side of a weight.
    """
    _refuse_adapted(model)
    shape = dataclasses.replace(model.config, lora=config)
    return _with(model, shape, initial(shape, seed, _mesh(model)))


def initial(config: DecoderConfig, seed: int, mesh: Mesh) -> Any:
    """Fresh adapters of a decoder of this shape, a nested dict on `mesh`."""

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
    """The decoder whose weights have the adapters in them: W + scale A B, in float32, cast to W's.

    Unless `keep`, `model` is of no use after it: what is merged is given up one kind after the
    other, so that never are there two copies of all.

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
    return nnx.merge(blueprint(plain)[0], params | {"layers": layers})


def save(model: Decoder, folder: str | Path) -> None:
    """Writes the adapters as PEFT does, in their dtype; whole or not at all.

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
    for own, placed in _table(model.config, "model.").items():
        values = np.asarray(layers[own])
        tensors |= {name: placed.to_file(values[i]) for i, name in enumerate(placed.names)}
    told = json.dumps(_to_json(config, model.config.folder), indent=2)
    with new_folder(folder, CONFIG) as aside:
        (aside / CONFIG).write_text(told + "\n", encoding="utf-8")
        write(tensors, aside / TENSORS)


def load(model: Decoder, folder: str | Path, *, dtype: str | None = None) -> Decoder:
    """A decoder with the adapters of a PEFT folder; its weights are shared with `model`.

    Args:
      model: without adapters; they go onto the mesh that it is on.
      folder: with adapter_config.json and adapter_model.safetensors, by `save` or by PEFT. Of
        adapters of a multimodal Gemma 3, those of the text half are taken.
      dtype: "float32", "bfloat16" or "float16" to cast to; None keeps each tensor's.

    Raises:
      ValueError: `model` has adapters already.
      McrError: a file is missing or broken, adapter_config.json asks for something that the decoder
        does not compute, or tensors are missing, too many or misshapen.
    """
    _refuse_adapted(model)
    told, tensors = Path(folder) / CONFIG, Path(folder) / TENSORS
    found = _read_tensors(tensors)
    prefix = next((m[1] for name in found if (m := _PREFIX.match(name))), "model.")
    try:
        read = json.loads(told.read_text(encoding="utf-8"))
        shape = dataclasses.replace(model.config, lora=_from_json(read, prefix, model.config))
    except OSError as error:
        raise McrError(f"{told}: cannot read: {error.strerror}") from error
    except ValueError as error:  # of JSON, too
        raise McrError(f"{told}: {error}") from error
    table = _table(shape, prefix)
    if faults := _faults(table, found):
        raise McrError(f"{tensors}: {len(faults)} tensors are wrong: {grouped(faults)}")

    def stack(placed: Placed, sharding: NamedSharding) -> jax.Array:
        layers = [placed.from_file(found[name], placed.shape[1:]) for name in placed.names]
        values = np.stack(layers).astype(jnp.dtype(dtype or layers[0].dtype))
        return jax.make_array_from_callback(values.shape, sharding, values.__getitem__)

    shapes = {name: jax.ShapeDtypeStruct(p.shape, jnp.float32) for name, p in table.items()}
    where = shardings(_mesh(model), {"layers": shapes})["layers"]
    adapters = {name: stack(placed, where[name]) for name, placed in table.items()}
    return _with(model, shape, {"layers": adapters})


def _params(model: Decoder) -> Any:
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def _with(model: Decoder, config: DecoderConfig, adapters: Any) -> Decoder:
    return nnx.merge(blueprint(config)[0], _params(model), adapters)


def _refuse_adapted(model: Decoder) -> None:
    if model.config.lora is not None:
        raise ValueError("the model has adapters already; merge them first")


def _adapted(model: Decoder) -> LoraConfig:
    if model.config.lora is None:
        raise ValueError("the model has no adapters; add or load some first")
    return model.config.lora


def _mesh(model: Decoder) -> Mesh:
    """The mesh that the model is on."""
    sharding = model.embedding[...].sharding
    if isinstance(sharding, NamedSharding):
        return sharding.mesh
    return make_mesh(1, 1, 1, list(sharding.device_set))


def _table(config: DecoderConfig, prefix: str) -> dict[str, Placed]:
    """Maps each adapter to its tensors in the file: lora_A [r, in], lora_B [out, r], by layer."""
    table = {}
    for target in config.lora.targets:
        inputs, outputs = config.projection(target)
        shapes = {
            "a": ((*inputs, config.lora.rank), len(inputs)),
            "b": ((config.lora.rank, *outputs), 1),
        }
        for half, (shape, columns) in shapes.items():
            stem, leaf = f"{_WRAPPED}{prefix}layers", f"lora_{half.upper()}.weight"
            names = tuple(f"{stem}.{i}.{_MODULES[target]}.{leaf}" for i in range(config.layers))
            table[f"{target}_lora_{half}"] = Placed((config.layers, *shape), names, True, columns)
    return table


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    with opened(path) as file:
        names = [name for name in file.keys() if not _VISION.search(name)]  # noqa: SIM118
        for name in names:
            if (dtype := file.get_slice(name).get_dtype()) not in DTYPES:
                raise McrError(f"{path}: {name} is of dtype {dtype}, none of {', '.join(DTYPES)}")
        return {name: file.get_tensor(name) for name in names}


def _faults(table: Mapping[str, Placed], found: Mapping[str, np.ndarray]) -> list[tuple[str, str]]:
    """Every tensor that is missing, too many, misshapen or of another dtype than its like."""
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


def _to_json(config: LoraConfig, base: str) -> dict[str, Any]:
    """adapter_config.json, with old keys only: PEFT refuses those that it does not know."""
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
        "target_modules": sorted(_MODULES[name].split(".")[-1] for name in config.targets),
        "use_rslora": config.rslora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


def _from_json(told: Any, prefix: str, config: DecoderConfig) -> LoraConfig:
    """The adapters that an adapter_config.json tells of. Raises ValueError naming the key."""
    if not isinstance(told, dict):
        raise ValueError("not an object")
    if "peft_type" not in told:
        raise ValueError("peft_type is missing")
    for key, value in told.items():
        allowed = _ALLOWED.get(key)
        if allowed is not None and value not in allowed:
            raise ValueError(f"{key} = {value!r}: none of {', '.join(map(repr, allowed))}")
        if key == "layers_to_transform" and value == [*range(config.layers)]:
            continue
        if allowed is None and key not in _READ and key not in _HARMLESS and value:
            raise ValueError(f"{key} = {value!r}: these adapters do not have that")
    return LoraConfig(
        rank=told.get("r", 8),
        alpha=told.get("lora_alpha", 8),
        dropout=told.get("lora_dropout") or 0.0,
        rslora=bool(told.get("use_rslora")),
        targets=_targets(told.get("target_modules"), prefix, config.layers),
    )


def _targets(told: Any, prefix: str, layers: int) -> tuple[str, ...]:
    """The projections that target_modules means: "all-linear", a regex, or ends of names."""
    if isinstance(told, str) and told.lower() == "all-linear":
        return PROJECTIONS
    names = {
        target: [f"{prefix}layers.{i}.{module}" for i in range(layers)]
        for target, module in _MODULES.items()
    }
    if isinstance(told, str):
        try:
            matches = re.compile(told).fullmatch
        except re.error as error:
            raise ValueError(f"target_modules = {told!r}: not a regular expression") from error
    elif told and isinstance(told, list) and all(isinstance(end, str) for end in told):
        ends = tuple(f".{end}" for end in told)
        every = [f".{name}" for of_target in names.values() for name in of_target]
        for end in ends:
            if not any(name.endswith(end) for name in every):
                raise ValueError(f"target_modules names {end[1:]!r}, which cannot have adapters")

        def matches(name: str) -> bool:
            return f".{name}".endswith(ends)
    else:
        raise ValueError(f"target_modules = {told!r}: neither names nor a regular expression")
    targets = []
    for target, of_target in names.items():
        hits = sum(bool(matches(name)) for name in of_target)
        if 0 < hits < layers:
            raise ValueError(
                f"target_modules = {told!r}: {_MODULES[target]} in {hits} of {layers} layers; "
                "these adapters are in all or in none"
            )
        targets += [target] * bool(hits)
    if not targets:
        raise ValueError(f"target_modules = {told!r}: no projection is of that name")
    return tuple(targets)
