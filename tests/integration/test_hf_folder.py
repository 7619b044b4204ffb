"""A Hugging Face folder comes in, is fine-tuned and sampled, and goes out again."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from processes import TINY, rows

from mcr_jax import prompts, synthetic
from mcr_jax.data.example import training_texts
from mcr_jax.data.tokenizer import Tokenizer
from mcr_jax.model import hf, store
from mcr_jax.model.config import DecoderConfig


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny Qwen 3 in bfloat16 with a tokenizer.json and a chat template."""
    folder = tmp_path_factory.mktemp("hub") / "tiny-qwen3"
    cases = synthetic.cases(0, {"train": 40, "val": 0, "test": 0})
    tokenizer = Tokenizer.train(training_texts(cases, prompts.load("diagnose_brief")), 400)
    shape = DecoderConfig(
        vocab_size=tokenizer.vocab_size + 8,  # tables are often padded
        layers=2,
        width=32,
        heads=4,
        kv_heads=2,
        head_dim=8,
        mlp_width=48,
        qk_norm=True,
        tied=False,
        dtype="bfloat16",
    )
    hf.save(store.untrained(shape, 0), folder, tokenizer=tokenizer)
    (folder / "tokenizer.model").unlink()
    return folder


def flags(config, folder) -> tuple[str, ...]:
    own = (f"--config.model.folder={folder}", "--config.train.steps=4")
    return ("--workdir=w", f"--config={config}", *own)


def tensors(folder) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / hf.SINGLE)


def test_a_folder_is_fine_tuned_sampled_and_exported(mcr, finished, tiny_config, base):
    shutil.copytree(finished.path / "data", mcr.folder / "w" / "data")
    said = mcr.ok("train", *flags(tiny_config, base))
    assert "attention: xla" in said  # the choice is said
    mcr.ok("sample", "--workdir=w")
    wanted = TINY["synthetic.test"] * TINY["sample.n"]
    assert len(rows(mcr.folder / "w", "sample")) == 2 * wanted

    mcr.ok("export", "--workdir=w", "--out=untouched", "--model=base")
    mcr.ok("export", "--workdir=w", "--out=tuned")
    before, after = tensors(base), tensors(mcr.folder / "tuned")
    untouched = tensors(mcr.folder / "untouched")
    assert before.keys() == after.keys() == untouched.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(untouched[name].astype("f4"), tensor.astype("f4"))
    assert any((after[name] != before[name].astype("f4")).any() for name in before)
    told = json.loads((mcr.folder / "tuned" / "config.json").read_text())
    assert (told["model_type"], told["torch_dtype"]) == ("qwen3", "float32")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (mcr.folder / "tuned" / name).read_bytes() == (base / name).read_bytes()

    manifest = json.loads((mcr.folder / "w" / "manifest.json").read_text())
    assert str(base) in manifest["sample.base"]["weights"]
    assert hf.load(mcr.folder / "tuned").config.vocab_size == hf.load(base).config.vocab_size

    assert "already there" in mcr.fails(1, "export", "--workdir=w", "--out=tuned")


def test_the_demo_s_own_model_is_exported(mcr, finished):
    mcr.ok("export", f"--workdir={finished.path}", "--out=out")
    told = json.loads((mcr.folder / "out" / "config.json").read_text())
    assert told["model_type"] == "qwen3"
    tokenizer = Tokenizer.load(mcr.folder / "out")
    assert tokenizer.vocab_size == told["vocab_size"]
    assert told["eos_token_id"] == list(tokenizer.eos_ids)


@pytest.mark.parametrize(
    ("args", "status", "names"),
    [
        (("--workdir=w",), 2, "--out"),
        (("--workdir=w", "--out=o", "--model=both"), 2, "both"),
        (("--workdir=w", "--out=o"), 2, "--config"),
    ],
)
def test_a_wrong_call_of_export_is_one_line(mcr, args, status, names):
    assert names in mcr.fails(status, "export", *args)


def test_a_folder_that_is_not_there_is_named(mcr, finished, tiny_config):
    shutil.copytree(finished.path / "data", mcr.folder / "w" / "data")
    assert "nowhere" in mcr.fails(1, "train", *flags(tiny_config, "nowhere"))


def test_ids_that_the_model_does_not_have_are_refused(mcr, finished, tiny_config, base):
    shutil.copytree(finished.path / "data", mcr.folder / "w" / "data")
    small = shutil.copytree(base, mcr.folder / "small")
    told = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(told | {"vocab_size": 17}))
    line = mcr.fails(1, "train", *flags(tiny_config, small))
    assert "17 ids" in line


def test_a_folder_written_over_after_training_is_refused(mcr, finished, tiny_config, base):
    shutil.copytree(finished.path / "data", mcr.folder / "w" / "data")
    own = shutil.copytree(base, mcr.folder / "own")
    mcr.ok("train", *flags(tiny_config, own))
    told = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(told | {"rope_theta": 77.0}))
    for command in (("train",), ("sample",), ("eval",), ("export", "--out=out")):
        assert "another model.folder" in mcr.fails(2, *command, "--workdir=w")
    assert not (mcr.folder / "out").exists()


def test_what_is_exported_stops_where_it_was_taught_to(mcr, finished, tiny_config, base):
    shutil.copytree(finished.path / "data", mcr.folder / "w" / "data")
    own = shutil.copytree(base, mcr.folder / "own")
    (own / "generation_config.json").write_text('{"eos_token_id": 5, "temperature": 0.5}')
    mcr.ok("train", *flags(tiny_config, own))
    mcr.ok("export", "--workdir=w", "--out=out")
    eos_ids = list(Tokenizer.load(own).eos_ids)
    assert eos_ids[0] != 5 and 5 in eos_ids
    generation = json.loads((mcr.folder / "out" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": eos_ids, "temperature": 0.5}
    assert json.loads((mcr.folder / "out" / "config.json").read_text())["eos_token_id"] == eos_ids
