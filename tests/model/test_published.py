"""The published shapes are those of the published weights: their numbers of parameters agree."""

import math

import jax
import pytest

from mcr_jax.errors import UsageError
from mcr_jax.model.abstract import abstract_decoder
from mcr_jax.model.families import model_type
from mcr_jax.model.hf import published

# As the model cards and the headers of the safetensors files count them; a tied table once.
TOTALS = {
    "qwen2_5_0_5b": 494_032_768,
    "qwen2_5_1_5b": 1_543_714_304,
    "qwen2_5_3b": 3_085_938_688,
    "qwen2_5_7b": 7_615_616_512,
    "qwen2_5_14b": 14_770_033_664,
    "qwen2_5_32b": 32_763_876_352,
    "qwen3_8b": 8_190_735_360,
    "llama3_2_1b": 1_235_814_400,
    "llama3_2_3b": 3_212_749_824,
    "llama3_1_8b": 8_030_261_248,
    "llama3_1_70b": 70_553_706_496,
    "mistral_7b_v0_1": 7_241_732_096,
    "mistral_7b_v0_3": 7_248_023_552,
    "phi3_mini_4k": 3_821_079_552,
    "phi4": 14_659_507_200,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    # Less the vision tower and the projector.
    "gemma3_4b": 4_300_079_472 - 416_866_032 - 2_950_272,
    "gemma3_12b": 12_187_325_040 - 416_866_032 - 4_424_832,
    "gemma3_27b": 27_432_406_640 - 416_866_032 - 6_194_304,
    "medgemma_4b": 4_300_079_472 - 416_866_032 - 2_950_272,
    "medgemma_27b": 27_009_002_240,
}


@pytest.mark.parametrize("name", published.CONFIGS)
def test_a_published_shape_has_as_many_parameters_as_the_published_weights(name):
    leaves = jax.tree.leaves(abstract_decoder(published.shape(name))[1])
    assert sum(math.prod(leaf.shape) for leaf in leaves) == TOTALS[name]


def test_gemma_has_five_local_layers_to_a_global_one_and_its_ropes():
    shape = published.shape("medgemma_27b")
    assert sum(shape.local_layers) == 62 - 62 // 6
    assert (shape.window, shape.rope.factor, shape.local_rope.theta) == (1024, 8.0, 10_000.0)
    assert published.shape("gemma3_1b").rope.scaling == "none"


def test_an_unknown_name_is_refused_with_the_nearest_or_all_that_are_known():
    with pytest.raises(UsageError, match="did you mean qwen2_5_7b"):
        published.shape("qwen25_7b")
    with pytest.raises(UsageError, match=f"known are {', '.join(published.CONFIGS)}"):
        published.shape("?")


def test_any_leaves_the_shape_to_a_folder():
    with pytest.raises(UsageError, match=r"leaves the shape to config.model.folder: name"):
        published.shape(published.ANY)


@pytest.mark.parametrize(
    ("name", "family"),
    [("qwen2_5_0_5b", "qwen2"), ("llama3_2_1b", "llama"), ("phi4", "phi3")],
)
def test_a_shape_is_of_the_family_that_its_config_names(name, family):
    assert model_type(published.shape(name)) == family
