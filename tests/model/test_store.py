"""Decoders come from a seed or from a checkpoint, and faults of storage are one line."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from mcr_jax.errors import McrError, UsageError
from mcr_jax.model import hf, lora, store
from mcr_jax.model.abstract import abstract_decoder, parts
from mcr_jax.model.hf import config_json
from mcr_jax.model.shape import LoraConfig
from mcr_jax.model.sharding import one_device
from mcr_jax.train.checkpoint import Checkpoints
from mcr_jax.train.step import State


def params_of(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


@pytest.fixture(scope="module")
def saved(tiny_shape, tmp_path_factory):
    """A folder with a checkpoint of step 4, and the decoder in it."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    model = store.untrained(tiny_shape, 9)
    checkpoints = Checkpoints(folder, 2)
    state = State(step=jax.numpy.int32(4), params=params_of(model), opt_state={})
    checkpoints.save(4, state)
    checkpoints.close()
    return folder, model


def test_an_abstract_decoder_allocates_nothing(tiny_shape):
    huge = dataclasses.replace(tiny_shape, vocab_size=200_000, width=8192, layers=80)
    _, shapes = abstract_decoder(huge)
    leaves = jax.tree.leaves(shapes)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert shapes["embedding"].shape == (200_000, 8192)


def test_a_seed_fixes_every_parameter(tiny_shape):
    one, same, other = (params_of(store.untrained(tiny_shape, seed)) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert all((np.asarray(one["layers"][n]) != other["layers"][n]).all() for n in "qkvo")


def test_no_two_parameters_are_drawn_alike(tiny_shape):
    shape = dataclasses.replace(tiny_shape, tied=False, kv_heads=4)
    params = params_of(store.untrained(shape, 1))
    assert (params["embedding"] != params["head"]).all()
    assert (params["layers"]["k"] != params["layers"]["v"]).all()
    assert (params["layers"]["q"][0] != params["layers"]["q"][1]).all()


def test_a_checkpoint_gives_the_decoder_back(saved, tiny_shape):
    folder, model = saved
    restored, step = store.trained(folder, tiny_shape)
    assert step == 4
    jax.tree.map(np.testing.assert_array_equal, params_of(restored), params_of(model))
    tokens = np.arange(6)[None]
    np.testing.assert_array_equal(restored(tokens), model(tokens))


def test_weights_are_read_and_drawn_in_another_dtype_than_they_are_kept_in(
    saved, tiny_shape, tmp_path
):
    folder, model = saved
    half = dataclasses.replace(tiny_shape, dtype="bfloat16")
    options = {"checkpoints": folder, "which": "newest", "seed": 9}
    plain = store.untrained(dataclasses.replace(tiny_shape, embedding_scale=1.0), 9)
    hf.save(plain, tmp_path / "hf")
    in_folder = dataclasses.replace(config_json.read(tmp_path / "hf"), dtype="bfloat16")
    for name, shape, kept in (
        ("sft", half, model),
        ("base", half, model),
        ("base", in_folder, plain),
    ):
        found, _ = store.named(name, shape, one_device(), **options)
        assert found.config.dtype == "bfloat16"
        cast = jax.tree.map(lambda x: x.astype("bfloat16"), params_of(kept))
        jax.tree.map(np.testing.assert_array_equal, params_of(found), cast)


def test_adapters_are_merged_into_weights_of_another_dtype(tiny_shape, tmp_path):
    shape = dataclasses.replace(tiny_shape, lora=LoraConfig(rank=2, alpha=4.0))
    model = store.untrained(tiny_shape, 9)
    model = lora.add(model, shape.lora, seed=1)
    for name in shape.lora.targets:
        b = getattr(model.layers, f"{name}_lora_b")
        b[...] = jax.numpy.ones_like(b[...])
    adapters = parts(params_of(model))[0]
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(4, State(step=jax.numpy.int32(4), params=adapters, opt_state={}))
    checkpoints.close()
    options = {"checkpoints": tmp_path, "which": "newest", "seed": 9}
    merged = params_of(lora.merge(model))
    for dtype, far in (("float32", 0), ("bfloat16", 2**-6)):
        kept = dataclasses.replace(shape, dtype=dtype)
        found, origin = store.named("sft", kept, one_device(), **options)
        assert (found.config.dtype, found.config.lora) == (dtype, None)
        assert origin == "checkpoint of step 4"
        for name, x in params_of(found)["layers"].items():
            other = merged["layers"][name]
            np.testing.assert_allclose(x.astype("float32"), other, rtol=far, atol=far / 4)


def test_a_name_of_no_decoder_is_a_wrong_call(tiny_shape):
    with pytest.raises(UsageError, match="no model 'sfx': there are base, sft"):
        store.named("sfx", tiny_shape, one_device(), checkpoints="", which="newest", seed=0)


def test_the_best_checkpoint_is_that_of_the_lowest_validation_loss(tiny_shape, tmp_path):
    checkpoints = Checkpoints(tmp_path, 1, keep_best=1)
    for step, loss in ((1, 0.7), (2, 0.5), (3, 0.6)):
        params = params_of(store.untrained(tiny_shape, step))
        checkpoints.save(step, State(jax.numpy.int32(step), params, opt_state={}), loss)
    checkpoints.close()
    for which, step in (("newest", 3), ("best", 2)):
        found, at = store.trained(tmp_path, tiny_shape, which=which)
        assert at == step
        expected = params_of(store.untrained(tiny_shape, step))
        jax.tree.map(np.testing.assert_array_equal, params_of(found), expected)


def test_an_unreadable_loss_costs_only_that_its_checkpoint_is_not_the_best(
    tiny_shape, tmp_path, capsys
):
    checkpoints = Checkpoints(tmp_path, 3)
    for step, loss in ((1, 0.7), (2, 0.5)):
        params = params_of(store.untrained(tiny_shape, step))
        checkpoints.save(step, State(jax.numpy.int32(step), params, opt_state={}), loss)
    checkpoints.close()
    for content in (b"{", b"5"):
        for file in (tmp_path / "2" / "metrics").iterdir():
            file.write_bytes(content)
        assert store.trained(tmp_path, tiny_shape, which="best")[1] == 1
        assert "the val_loss of step 2 counts as not measured" in capsys.readouterr().out


def test_without_a_validation_loss_no_checkpoint_is_the_best(saved, tiny_shape):
    with pytest.raises(McrError, match="no checkpoint here has a validation loss") as refused:
        store.trained(saved[0], tiny_shape, which="best")
    assert "\n" not in str(refused.value)
    with pytest.raises(McrError, match="no checkpoint here has a validation loss"):
        store.chosen_step(saved[0], "best")  # nothing is loaded to find that out
    assert store.chosen_step(saved[0], "newest") == store.trained(saved[0], tiny_shape)[1]


def test_a_damaged_checkpoint_says_how_to_go_on(saved, tiny_shape, tmp_path):
    folder = shutil.copytree(saved[0], tmp_path / "damaged")
    for file in (folder / "4" / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(McrError, match="rename the folder 4 there and run `mcr train` again"):
        store.trained(folder, tiny_shape)


def test_no_checkpoint_is_one_line(tiny_shape, tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(McrError) as refused:
            store.trained(folder, tiny_shape)
        assert str(folder) in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "other", [{"width": 32}, {"layers": 3}, {"tied": False}, {"vocab_size": 64}], ids=str
)
def test_a_checkpoint_of_another_shape_is_one_line(saved, tiny_shape, other):
    folder, _ = saved
    with pytest.raises(McrError) as refused:
        store.trained(folder, dataclasses.replace(tiny_shape, **other))
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)
