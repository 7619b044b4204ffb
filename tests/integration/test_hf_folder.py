"""A Hugging Face folder is loaded, fine-tuned, sampled and exported."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from processes import TINY, rows

from mcr_jax import prompts, synthetic
from mcr_jax.data.example import training_texts
from mcr_jax.model import hf, store
from mcr_jax.model.shape import DecoderConfig, Yarn
from mcr_jax.text.tokenizer import Tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny Qwen 3 in bfloat16 with a tokenizer.json and a chat template.

    As people publish them: stretched by YaRN, with keys that say nothing, saved while compiled.
    """
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
        rope=Yarn(factor=4.0, original_length=32, attention_factor=1.2),
        qk_norm=True,
        tied=False,
        dtype="bfloat16",
    )
    hf.save(store.untrained(shape, 0), folder, tokenizer=tokenizer)
    (folder / "tokenizer.model").unlink()
    told = json.loads((folder / "config.json").read_text())
    odd = {"_model_name_or_path": "x", "unk_token_id": 0, "use_flash_attention": True}
    (folder / "config.json").write_text(json.dumps(told | odd))
    named = {f"_orig_mod.{name}": tensor for name, tensor in tensors(folder).items()}
    safetensors.numpy.save_file(named, folder / hf.SINGLE, {"format": "pt"})
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
    compiled, after = tensors(base), tensors(mcr.folder / "tuned")
    before = {name.removeprefix("_orig_mod."): tensor for name, tensor in compiled.items()}
    untouched = tensors(mcr.folder / "untouched")
    assert before.keys() == after.keys() == untouched.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(untouched[name].astype("f4"), tensor.astype("f4"))
    assert any((after[name] != before[name].astype("f4")).any() for name in before)
    told = json.loads((mcr.folder / "tuned" / "config.json").read_text())
    assert (told["model_type"], told["torch_dtype"]) == ("qwen3", "float32")
    assert told["rope_scaling"]["rope_type"] == "yarn"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (mcr.folder / "tuned" / name).read_bytes() == (base / name).read_bytes()

    manifest = json.loads((mcr.folder / "w" / "manifest.json").read_text())
    assert str(base) in manifest["sample.base"]["weights"]
    assert hf.load(mcr.folder / "tuned").config.vocab_size == hf.load(base).config.vocab_size

    again = mcr.ok("export", "--workdir=w", "--out=tuned")
    assert "nothing to do, tuned holds the checkpoint of step 4" in again
    for other in ("--dtype=bfloat16", "--model=base", "--config.sample.checkpoint=best"):
        assert "already there" in mcr.fails(1, "export", "--workdir=w", "--out=tuned", other)

    mcr.ok("export", "--workdir=w", "--out=half", "--dtype=bfloat16")
    half = tensors(mcr.folder / "half")
    told = json.loads((mcr.folder / "half" / "config.json").read_text())
    assert told["torch_dtype"] == "bfloat16"
    for name, tensor in after.items():
        np.testing.assert_array_equal(half[name], tensor.astype(half[name].dtype))

    shutil.move(base, mcr.folder / "away")  # nothing is open, so no weights are needed
    try:
        again = mcr.ok("sample", "--workdir=w")
    finally:
        shutil.move(mcr.folder / "away", base)
    assert again.count("nothing to do") == again.count("no longer here") == 2
    shutil.copy(base / "config.json", mcr.folder / "config.json")
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 1e-5}))
    try:
        assert "trained with another" in mcr.fails(2, "sample", "--workdir=w")
    finally:
        shutil.move(mcr.folder / "config.json", base / "config.json")


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
        (("--workdir=w", "--out=o", "--dtype=int8"), 2, "float32 and bfloat16"),
        (("--workdir=w", "--out=gs://b/o"), 2, "gs://b/o is not a local folder"),
        (("--workdir=gs://b/w", "--out=o"), 2, "gs://b/w is not a local folder"),
        (("--workdir=w", "--out=o", "--adapters", "--model=base"), 2, "has no adapters"),
        (("--workdir=w", "--out=o", "--adapters", "--dtype=float32"), 2, "as trained"),
    ],
)
def test_a_wrong_call_of_export_is_one_line(mcr, args, status, names):
    assert names in mcr.fails(status, "export", *args)


def test_a_folder_that_is_not_there_is_named(mcr, finished, tiny_config):
    shutil.copytree(finished.path / "data", mcr.folder / "w" / "data")
    line = mcr.fails(2, "train", *flags(tiny_config, "nowhere"))
    assert "config.model.folder=nowhere: no such folder; download it first" in line


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ((), "needs the weights of a model: name their folder with --config.model.folder=DIR"),
        (("folder=gs://b/m",), "gs://b/m is not a local folder"),
        (("folder=base",), "holds a model of type qwen3, and this config is for qwen2"),
        (("folder=base", "shape=qwen9"), "'qwen9' is no published model"),
    ],
)
def test_a_config_of_a_published_model_trains_no_other_family(
    mcr, finished, tiny_config, base, named, told
):
    shutil.copytree(finished.path / "data", mcr.folder / "w" / "data")
    (mcr.folder / "base").symlink_to(base)
    model = [f"--config.model.{given}" for given in ("shape=qwen2_5_7b", *named)]
    line = mcr.fails(2, "train", f"--config={tiny_config}", "--workdir=w", *model)
    assert told in line


def test_a_first_call_that_failed_gives_way_to_a_corrected_one(mcr, finished, tiny_config, base):
    wrong = (*flags(tiny_config, "nowhere"), "--config.optim.learning_rate=0.5")
    right = flags(tiny_config, base)
    mcr.fails(1, "train", *wrong)  # no dataset
    shutil.copytree(finished.path / "data", mcr.folder / "w" / "data")
    mcr.fails(2, "train", *wrong)
    mcr.fails(1, "train", *right, "--config.train.row_tokens=8")  # in which nothing fits
    mcr.ok("train", *right)
    told = json.loads((mcr.folder / "w" / "config.json").read_text())
    assert told["model"]["folder"] == str(base)
    changes = "train.row_tokens=8", "model.folder=nowhere", "optim.learning_rate=0.5", "seed=9"
    for other in changes:
        assert "was made with" in mcr.fails(2, "train", *right, f"--config.{other}")


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
