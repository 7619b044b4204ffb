"""A family is one record: nothing else in the package knows a family by its name."""

import ast
import pathlib

import numpy as np
import pytest
import tiny_hf
from model_folders import in_files, same, tensors

import mcr_jax
from mcr_jax.model import hf
from mcr_jax.model.families import FAMILIES, MULTIMODAL, Family
from mcr_jax.model.sharding import make_mesh

PACKAGE = pathlib.Path(mcr_jax.__file__).parent
DATA = {PACKAGE / "model/families.py", PACKAGE / "model/hf/published.py"}


def test_no_code_outside_the_records_names_a_family():
    for path in PACKAGE.rglob("*.py"):
        constants = {n.value for n in ast.walk(ast.parse(path.read_text())) if _is_text(n)}
        assert path in DATA or not constants & {*FAMILIES, *MULTIMODAL}, path


def _is_text(node) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_every_family_has_a_tiny_model_that_is_compared_with_transformers():
    assert {keys["model_type"] for keys in tiny_hf.VARIANTS.values()} == FAMILIES.keys()


OLIVE = Family(
    architecture="OliveForCausalLM",
    defaults={"act": "silu", "sliding_window": 64},
    fixed={"qkv_bias": True},
    activation_key="act",
    windows="all",
    tensors={
        **dict.fromkeys(("k", "v"), "attention.kv.weight"),
        **dict.fromkeys(("k_bias", "v_bias"), "attention.kv.bias"),
        "mlp_norm": "mlp_layernorm.weight",
    },
    harmless_keys=("attention_flavour",),
)


@pytest.mark.parametrize("mesh", [None, (2, 2, 2)], ids=["one device", "2x2x2"])
def test_one_record_makes_a_family_load_and_save(monkeypatch, tmp_path, mesh):
    monkeypatch.setitem(FAMILIES, "olive", OLIVE)
    want, named = hf.load(write(tmp_path / "qwen2", "qwen2", tensors("qwen2"))), tensors("qwen2")
    for layer in (f"model.layers.{i}." for i in range(3)):
        for kind in ("weight", "bias"):
            parts = [named.pop(f"{layer}self_attn.{x}_proj.{kind}") for x in "kv"]
            named[f"{layer}attention.kv.{kind}"] = np.concatenate(parts)
        norm = named.pop(f"{layer}post_attention_layernorm.weight")
        named[f"{layer}mlp_layernorm.weight"] = norm
    keys = {"model_type": "olive", "sliding_window": None, "attention_flavour": "green"}
    model = hf.load(
        write(tmp_path / "olive", "qwen2", named, **keys), mesh=mesh and make_mesh(*mesh)
    )
    for name, x in want.stacked().items():
        np.testing.assert_array_equal(model.stacked()[name], x)
    hf.save(model, tmp_path / "out")
    assert same(in_files(tmp_path / "out"), named)
    assert '"OliveForCausalLM"' in (tmp_path / "out" / "config.json").read_text()


def write(folder, variant, named, **keys):
    return tiny_hf.write(folder, {**tiny_hf.VARIANTS[variant], **keys}, named)
