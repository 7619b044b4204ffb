"""The plan estimates what XLA allocates, and chooses the slots and the mesh that fit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from quick import quick

from mcr_jax.errors import McrError, UsageError
from mcr_jax.generate import slots
from mcr_jax.generate.engine import programs, state
from mcr_jax.generate.engine.programs import Feed, Program
from mcr_jax.generate.engine.state import Shape
from mcr_jax.generate.engine.weights import Weights
from mcr_jax.generate.slots import USABLE, Machine, plan
from mcr_jax.model.abstract import abstract_decoder
from mcr_jax.model.hf import published
from mcr_jax.model.shape import DecoderConfig, LoraConfig
from mcr_jax.model.sharding import abstract, make_mesh, shardings

# Large enough that the memory of a step exceeds what the compiler adds to any program.
CONFIG = DecoderConfig(
    vocab_size=2048,
    layers=2,
    width=128,
    heads=8,
    kv_heads=4,
    head_dim=32,
    mlp_width=512,
    tied=False,
)
SHAPE = Shape(slots=16, share=4, prompt_tokens=256, max_tokens=192)
BIG = dataclasses.replace(published.shape("qwen2_5_7b"), dtype="bfloat16")
ROOMY = Shape(slots=64, prompt_tokens=2048, max_tokens=1536)


def machine(count: int, gigabytes: float) -> Machine:
    return Machine(kind="imagined", count=count, bytes=int(gigabytes * 1e9))


def compiled(config: DecoderConfig, shape: Shape, tensor: int):
    """Returns XLA's memory analysis, per device, of a chunk of steps and of a layer's prefill."""
    mesh = make_mesh(1, 1, tensor, jax.devices()[:tensor])
    program = Program(config, shape, mesh, "xla")
    params = abstract_decoder(config)[1]
    params = abstract(params, shardings(mesh, params))
    layer = {}
    for name, x in params["layers"].items():
        placed = NamedSharding(mesh, PartitionSpec(*x.sharding.spec[1:]))
        layer[name] = jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=placed)
    weights = Weights(
        params["embedding"], (layer,) * config.layers, params["final_norm"], params.get("head")
    )
    like = state.blueprint(config, shape, mesh, "xla")

    def ours(dtype, *size):
        placed = NamedSharding(mesh, PartitionSpec("data"))
        return jax.ShapeDtypeStruct(size, jnp.dtype(dtype), sharding=placed)

    jobs, rows = shape.jobs, shape.rows
    feed = Feed(
        *(like.queue, ours("uint32", jobs), ours("int32", jobs), ours("int32", 1)),
        ours("bool", rows),
    )
    numbers = np.zeros(1, np.int32), np.int32(0)
    decode = programs.decode.lower(program, weights, like, feed, *numbers).compile()
    x = ours(config.dtype, 1, shape.prompt_tokens, config.width)
    kernel = program.kernel
    prefill = programs.prefill_layer.lower(
        program, False, kernel, layer, x, like.layers[0], ours("int32", 1), ours("bool", 1)
    ).compile()
    return decode.memory_analysis(), prefill.memory_analysis()


@pytest.mark.parametrize(
    ("tensor", "change"),
    quick(1, [(2, {}), (1, {"kv_dtype": "int8", "prompt_tokens": 640, "max_tokens": 1024})]),
    ids=["tensor", "long"],
)
def test_arguments_are_estimated_to_the_byte_and_temporary_memory_within_bounds(tensor, change):
    shape = dataclasses.replace(SHAPE, **change)
    memory = slots.memory(CONFIG, shape, tensor, "xla")
    decode, prefill = compiled(CONFIG, shape, tensor)
    output = 2 * 2 * 4 * shape.rows * (shape.max_tokens + 1)  # the copies that the host reads
    stays = memory.weights + memory.prompts + memory.answers + memory.output - output
    feed = shape.jobs * 11 * 4 + shape.rows + 64
    assert stays <= decode.argument_size_in_bytes <= stays + feed
    assert decode.alias_size_in_bytes >= memory.prompts + memory.answers
    passes = max(decode.temp_size_in_bytes, prefill.temp_size_in_bytes)
    assert memory.work / 4 < passes < memory.work


def fits(planned: slots.Plan) -> bool:
    return planned.memory.total <= USABLE * planned.machine.bytes


def test_all_wanted_slots_are_taken_where_they_fit_in_multiples_of_8():
    planned = plan(BIG, dataclasses.replace(ROOMY, slots=100), machine(1, 141), "xla")
    assert (planned.shape.slots, planned.data, planned.tensor) == (96, 1, 1)
    assert plan(BIG, dataclasses.replace(ROOMY, slots=1), machine(1, 141), "xla").shape.slots == 8


def test_8_more_slots_would_not_fit():
    planned = plan(BIG, dataclasses.replace(ROOMY, slots=512), machine(1, 40), "xla")
    assert 8 < planned.shape.slots < 512 and planned.shape.slots % 8 == 0 and fits(planned)
    more = dataclasses.replace(planned.shape, slots=planned.shape.slots + 8)
    assert slots.memory(planned.config, more, 1, "xla").total > USABLE * planned.machine.bytes


def test_a_replica_takes_as_few_devices_as_the_slots_fit_on():
    for gigabytes, tensor in ((141, 1), (24, 2), (16, 2), (10, 4)):
        planned = plan(BIG, ROOMY, machine(4, gigabytes), "xla")
        assert (planned.tensor, planned.data, planned.shape.slots) == (tensor, 4 // tensor, 64)


def test_where_all_slots_fit_on_no_mesh_the_mesh_with_the_most_slots_is_taken():
    wanted = dataclasses.replace(ROOMY, slots=4096)
    planned = plan(BIG, wanted, machine(4, 24), "xla")
    others = [plan(BIG, wanted, machine(4, 24), "xla", tensor=n) for n in (1, 2, 4)]
    assert planned.data * planned.shape.slots == max(p.data * p.shape.slots for p in others)
    assert planned in others


def test_int8_and_bfloat16_leave_room_for_more_slots():
    many = dataclasses.replace(ROOMY, slots=4096)
    half = plan(BIG, dataclasses.replace(many, kv_dtype="int8"), machine(1, 60), "xla")
    whole = plan(BIG, many, machine(1, 60), "xla")
    assert half.shape.slots > 1.4 * whole.shape.slots
    assert (
        whole.shape.slots
        > plan(dataclasses.replace(BIG, dtype="float32"), many, machine(1, 60), "xla").shape.slots
    )


def test_adapters_count_as_merged():
    lora = dataclasses.replace(BIG, lora=LoraConfig(rank=32, alpha=64))
    assert plan(lora, ROOMY, machine(1, 40), "xla") == plan(BIG, ROOMY, machine(1, 40), "xla")


def test_a_decoder_that_does_not_fit_is_one_line_with_what_would_help():
    long, large = dataclasses.replace(ROOMY, max_tokens=32_768), {"dtype": "float32"}
    for wanted, gigabytes, helps in ((long, 43, True), (ROOMY, 16, False)):
        with pytest.raises(McrError) as refused:
            plan(dataclasses.replace(BIG, **large), wanted, machine(1, gigabytes), "xla")
        line = str(refused.value)
        assert "\n" not in line
        assert line.startswith("not even 8 slots fit")
        assert "set config.sample.dtype=bfloat16" in line
        for hint in ("config.sample.max_tokens", "config.sample.kv_dtype=int8"):
            assert (hint in line) is helps  # no help if the weights alone are too large


def test_a_tensor_axis_that_does_not_divide_the_devices_is_refused():
    with pytest.raises(UsageError, match=r"config\.sample\.tensor=3 does not divide the 4 devices"):
        plan(BIG, ROOMY, machine(4, 141), "xla", tensor=3)


def test_the_plan_names_the_mesh_the_dtypes_and_the_bytes():
    planned = plan(BIG, dataclasses.replace(ROOMY, slots=4096), machine(4, 24), "xla")
    text = " ".join(planned.lines())
    for word in (
        "4 x imagined",
        f"data {planned.data}",
        f"tensor {planned.tensor}",
        "bfloat16",
        "weights",
    ):
        assert word in text
    assert f"{planned.shape.slots} slots of 4096 wanted" in text


def test_this_machine_has_memory():
    here = slots.machine()
    assert here.count == len(jax.devices()) and here.bytes > 1e8
    assert plan(CONFIG, SHAPE, here, "xla").mesh().shape == {"data": 8, "fsdp": 1, "tensor": 1}
