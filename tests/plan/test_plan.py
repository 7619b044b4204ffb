"""A plan is arithmetic that holds, refuses what cannot be, and says what would help."""

import dataclasses
import json

import pytest
from jax.sharding import PartitionSpec as P

from mcr_jax import config as configs
from mcr_jax.errors import McrError, UsageError
from mcr_jax.experiment import parts
from mcr_jax.model.devices import KNOWN, devices
from mcr_jax.model.hf import published
from mcr_jax.plan import tables
from mcr_jax.plan.training import count, plan

SMALL = published.shape("qwen2_5_0_5b")


@pytest.fixture
def config():
    c = configs.default()
    c.model.shape = "qwen2_5_0_5b"
    c.train.rows, c.train.row_tokens, c.train.compute = 16, 512, "bfloat16"
    return c


@pytest.mark.parametrize("text", ["8 x v5e", "8xv5e", "8 X V5E", " 8 × v5e "])
def test_devices_are_read_however_people_write_them(text):
    made = devices(text)
    assert (made.count, made.kind, made.bytes, made.flops) == (8, "v5e", 16 * 10**9, 197e12)


@pytest.mark.parametrize("text", ["4 x A100-80GB", "4 x A100 80GB", "4xa100-80gb", "4 x A100-80"])
def test_the_two_a100_are_told_apart(text):
    assert devices(text).bytes == 80 * 10**9


@pytest.mark.parametrize("text", ["", "8", "8x", "0 x v5e", "eight x v5e", "x v5e"])
def test_what_is_no_count_of_devices_is_refused_in_a_line(text):
    with pytest.raises(UsageError, match="is not COUNT x KIND"):
        devices(text)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("v5litepod-64", "64 x v5e"),
        ("v5e-8", "8 x v5e"),
        ("v6e-16", "16 x v6e"),
        ("v4-8", "4 x v4"),
        ("v5p-16", "8 x v5p"),
        ("8 x TPU v5e", "8 x v5e"),
        ("8 x v5litepod", "8 x v5e"),
        ("8 x NVIDIA H200", "8 x H200"),
        ("8 x h100-80gb", "8 x H100"),
        ("NVIDIA A100-SXM4-80GB x 8", "8 x A100-80GB"),
        ("v5e", "1 x v5e"),
        ("4 x 4090", "4 x RTX 4090"),
        ("4x4090", "4 x RTX 4090"),
        ("4090 x 4", "4 x RTX 4090"),
        ("4090", "1 x RTX 4090"),
        ("RTX 4090", "1 x RTX 4090"),
        ("2 NVIDIA GeForce RTX 3090", "2 x RTX 3090"),
        ("rtx5090 32GB", "1 x RTX 5090"),
        ("8xB200", "8 x B200"),
        ("Tesla T4", "1 x T4"),
    ],
)
def test_names_that_the_clouds_and_jax_use_are_understood(text, meant):
    assert devices(text) == devices(meant)


def test_the_a100_alone_is_asked_which():
    with pytest.raises(UsageError, match=r"'a100' is none of A100-40GB, A100-80GB$"):
        devices("8 x a100")


@pytest.mark.parametrize("text", ["1000001 x v5e", f"{'9' * 5000} x v5e"])
def test_more_devices_than_any_job_has_are_refused(text):
    with pytest.raises(UsageError, match="COUNT of 1 to 1,000,000"):
        devices(text)


def test_an_unknown_kind_is_refused_with_those_known():
    with pytest.raises(UsageError, match=r"'H900' is none of v4, v5e, .*RTX 4090, RTX 5090, cpu"):
        devices("8 x H900")
    with pytest.raises(UsageError, match=r"'4090 Ti' is none of"):
        devices("2 x 4090 Ti")


def test_every_kind_has_memory_peak_bandwidth_and_link_but_the_cpu_and_only_the_t4_no_bfloat16():
    made = {kind: devices(f"2 x {kind}") for kind in KNOWN}
    assert all(one.bytes > 10**8 for one in made.values())
    assert made.pop("cpu").flops is None
    assert all(1e12 < one.flops < 1e16 for one in made.values())
    assert all(one.bandwidth > one.link > 1e10 for one in made.values())
    assert [kind for kind, one in made.items() if not one.bfloat16] == ["T4"]


def test_a_plan_places_every_parameter_by_the_rules(config):
    made = plan(config, devices("8 x v5e"))
    placed = {one.name: one for one in made.parameters}
    assert count(made.parameters) == 494_032_768
    assert placed["embedding"].spec == P("tensor", "fsdp")
    assert placed["embedding"].shard == (151_936, 896 // 8)
    assert placed["layers.down"].shard == (24, 4864, 896 // 8)
    assert placed["final_norm"].shard == (896,)
    assert made.mesh == {"data": 1, "fsdp": 8, "tensor": 1}


def test_a_folder_beyond_its_length_is_planned_like_the_published_one(config, tmp_path):
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
    told = {**published.CONFIGS["qwen2_5_0_5b"], "rope_scaling": yarn, "_model_name_or_path": "x"}
    (tmp_path / "config.json").write_text(json.dumps(told))
    config.model.shape, config.model.folder = "", str(tmp_path)
    made = plan(config, devices("8 x v5e"))
    config.model.shape, config.model.folder = "qwen2_5_0_5b", ""
    assert made.parameters == plan(config, devices("8 x v5e")).parameters


def test_the_config_decides_dtype_remat_and_adapters_not_the_shape(config):
    config.model.dtype, config.lora.rank, config.train.remat = "bfloat16", 8, "full"
    made = plan(config, devices("1 x L4"))
    adapters = [one for one in made.parameters if one.trained]
    assert adapters and {one.dtype for one in adapters} == {"float32"}
    assert {one.dtype for one in made.parameters if not one.trained} == {"bfloat16"}


def test_hours_are_steps_times_operations_over_the_assumed_share_of_the_peak(config):
    config.train.steps = 1000
    made = plan(config, devices("1 x v5e"))
    low, high = made.hours
    assert low == pytest.approx(1000 * made.flops / (197e12 * 0.55 * 3600))
    moved = made.traffic.moved / (819e9 * 0.4)
    assert high == pytest.approx(1000 * (made.flops / (197e12 * 0.35) + moved) / 3600)
    assert made.traffic.exchanged == 0
    assert plan(config, devices("1 x cpu")).hours is None


def test_slow_links_bound_the_time_and_one_more_device_never_makes_the_exchange_less(config):
    config.train.steps = 1000
    made = [plan(config, devices(f"{n} x RTX 4090")) for n in (1, 2, 4, 8)]
    exchanged = [one.traffic.exchanged for one in made]
    assert exchanged == sorted(exchanged) and len(set(exchanged)) == 4
    size = count(made[0].parameters)
    assert exchanged[1] == pytest.approx(size * (2 * 2 + 4) / 2, rel=0.01)  # half is the other's
    linked = exchanged[3] / (32e9 * 0.8)
    assert made[3].hours[0] == pytest.approx(1000 * linked / 3600)
    nvlink = plan(config, devices("8 x H100"))
    assert nvlink.traffic == made[3].traffic and nvlink.hours[0] < made[3].hours[0] / 5


def test_tensor_parallelism_exchanges_activations_and_data_parallelism_only_gradients(config):
    def exchanged(**mesh):
        config.mesh.update(dict.fromkeys(("data", "fsdp", "tensor"), 1) | mesh)
        return plan(config, devices("2 x L40S")).traffic.exchanged

    size = count(plan(config, devices("1 x L40S")).parameters)
    assert exchanged(data=2) == size * 4
    tokens, hidden = config.train.rows * config.train.row_tokens, SMALL.width
    assert exchanged(tensor=2) == SMALL.layers * 4 * tokens * hidden * 2


def test_a_device_without_bfloat16_tensor_cores_is_said_to_compute_in_float32(config, capsys):
    config.train.remat, config.train.steps, config.train.accumulate = "full", 100, 16
    tables.run(config, "T4")
    shown = capsys.readouterr().out
    assert "T4 has no bfloat16 tensor cores" in shown and "float32, each 8.1 TFLOP/s" in shown
    assert "not measured" in shown
    config.train.accumulate = 1
    tables.run(config, "16 x L4")
    shown = capsys.readouterr().out
    assert "tensor cores" not in shown and "network between machines is not counted" in shown


def test_epochs_become_the_steps_that_pass_over_the_cases_so_often(config):
    config.train.epochs = 2.0
    made = plan(config, devices("1 x H100"), cases=1000, case_tokens=256)
    assert made.steps == pytest.approx(2 * 1000 * 256 / (16 * 512), rel=0.05)


def test_a_mesh_that_does_not_fit_the_devices_is_refused(config):
    config.mesh.fsdp = 3
    with pytest.raises(UsageError, match=r"1 x 3 x 1 .* does not fit 8 devices"):
        plan(config, devices("8 x v5e"))


def test_rows_that_do_not_divide_are_refused(config):
    config.train.rows = 12
    with pytest.raises(UsageError, match=r"rows=12 is not a multiple of .* = 8"):
        plan(config, devices("8 x v5e"))


@pytest.mark.promise("refuses what cannot fit with the settings that would help")
def test_what_cannot_fit_names_the_largest_part_and_changes_that_make_it_fit(config):
    config.train.row_tokens = 4096
    there = devices("1 x T4")
    made = plan(config, there)
    assert made.memory.total > made.usable
    assert "the largest part is activations kept" in made.problem
    assert "\n" not in made.problem
    assert "config.train.remat=full" in made.problem
    config.train.remat, config.train.accumulate = "full", 16
    assert plan(config, there).problem == ""


def test_attention_is_in_plain_xla_where_no_kernel_takes_the_head(config):
    def fused(kind, shape="qwen2_5_0_5b"):
        config.model.shape = shape
        return plan(config, devices(f"1 x {kind}")).fused

    config.train.remat = "full"
    gemma = "gemma3_1b"  # heads of 256
    assert (fused("H100"), fused("A100-80GB"), fused("T4")) == (True, True, False)
    assert (fused("H100", gemma), fused("A100-80GB", gemma), fused("v5e", gemma)) == (
        *(True, False, True),
    )
    config.train.compute = "float32"
    assert (fused("H100"), fused("v5e")) == (False, True)


@pytest.mark.parametrize(("field", "value"), [("rank", 50_000), ("alpha", 0.0)])
def test_adapters_that_cannot_be_are_refused(config, field, value):
    config.lora.rank = 8
    config.lora[field] = value
    with pytest.raises(UsageError, match=f"config: lora.{field}"):
        plan(config, devices("1 x H100"))


def test_as_many_rows_as_a_config_may_have_are_planned_too(config):
    config.train.rows = 10**9
    assert "do not fit" in plan(config, devices("1 x H100")).problem


def test_time_is_told_in_minutes_below_an_hour_and_not_where_it_does_not_fit(config, capsys):
    config.train.remat, config.train.steps = "full", 100
    tables.run(config, "8 x v5e")
    shown = capsys.readouterr().out
    assert "minutes" in shown and "hours" not in shown
    config.train.row_tokens = 2**20
    with pytest.raises(McrError):
        tables.run(config, "8 x v5e")
    assert "of peak" not in capsys.readouterr().out


def test_a_plan_is_json(config):
    told = json.loads(json.dumps(plan(config, devices("8 x v5e")).to_json()))
    assert told["memory_total"] == sum(told["memory"].values())
    assert told["parameters"][0]["spec"] == ["tensor", "fsdp"]
    assert told["mfu_assumed"] == [0.35, 0.55]


@pytest.mark.parametrize("width", [80, 120])
def test_the_tables_fit_the_terminal_and_say_what_is_assumed(config, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    config.train.remat = "full"
    tables.run(config, "8 x v5e")
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    for words in ("494.03 M parameters", "151936 x 112", "needed", "assuming 55 to 35 % of peak"):
        assert words in shown


def test_a_plan_that_does_not_fit_is_shown_and_fails(config, capsys):
    config.train.row_tokens = 4096
    with pytest.raises(McrError, match="do not fit into") as failed:
        tables.run(config, "1 x T4")
    assert not isinstance(failed.value, UsageError)
    assert "usable" in capsys.readouterr().out


def test_the_shape_is_that_of_the_folder_or_the_published_one_or_the_sizes(config, tmp_path):
    chosen = {"remat": config.train.remat, "dtype": config.model.dtype}
    assert parts.decoder_shape(config) == dataclasses.replace(SMALL, **chosen)
    (tmp_path / "config.json").write_text(json.dumps(published.CONFIGS["gemma3_1b"]))
    config.model.folder = str(tmp_path)
    gemma = dataclasses.replace(published.shape("gemma3_1b"), **chosen)
    assert parts.decoder_shape(config) == gemma
    config.model.folder = config.model.shape = ""
    assert parts.decoder_shape(config).width == config.model.width
    config.model.heads = 3
    with pytest.raises(UsageError, match="does not divide heads 3"):
        parts.decoder_shape(config)
