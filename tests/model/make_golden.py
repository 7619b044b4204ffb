"""Writes golden/: logits that transformers computes for the tiny models of `tiny_hf`.

    PYTHON tests/model/make_golden.py

where PYTHON has torch and transformers (`make reference` installs one). Run it with transformers 4
and with transformers 5: each adds the config.json that it writes; the logits are to be the same.
"""

import json
import pathlib
import tempfile

import numpy as np
import tiny_hf
import torch
import transformers


def golden(name: str) -> tuple[dict, dict, np.ndarray]:
    """Returns config.json as transformers writes it, shapes of tensors, logits at `PLACES`."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "config.json").write_text(json.dumps(tiny_hf.VARIANTS[name]))
        config = transformers.AutoConfig.from_pretrained(folder)
        model = transformers.AutoModelForCausalLM.from_config(config)
        model.save_pretrained(folder)
        raw = json.loads((folder / "config.json").read_text())
        shapes = {
            key: tuple(value.shape)
            for key, value in model.state_dict().items()
            if not (config.tie_word_embeddings and key == "lm_head.weight")
        }
        tiny_hf.write(folder, raw, tiny_hf.weights(name, shapes))
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(tiny_hf.tokens())).logits.numpy()
    return raw, shapes, logits[:, tiny_hf.PLACES]


def rope(raw: dict) -> dict:
    """Returns transformers 5's frequencies and factor on cosines and sines for rope keys."""
    config = transformers.Qwen3Config(
        head_dim=tiny_hf.HEAD_DIM,
        max_position_embeddings=tiny_hf.MAX_LENGTH,
        rope_parameters=dict(raw),
    )
    made = transformers.models.qwen3.modeling_qwen3.Qwen3RotaryEmbedding(config)
    frequencies = [float(x) for x in made.inv_freq.numpy()]
    return {"frequencies": frequencies, "attention_factor": made.attention_scaling}


def main() -> None:
    tiny_hf.GOLDEN.mkdir(exist_ok=True)
    configs, shapes, logits = {}, {}, {}
    for name in tiny_hf.VARIANTS:
        configs[name], shapes[name], logits[name] = golden(name)
    stored = tiny_hf.GOLDEN / "logits.npz"
    if stored.exists():
        with np.load(stored) as before:
            moved = {name: np.abs(before[name] - logits[name]).max() for name in before}
        print("largest change of a logit:", max(moved.values()))
    raw = {"version": transformers.__version__, "configs": configs}
    major = transformers.__version__.split(".")[0]
    (tiny_hf.GOLDEN / f"transformers{major}.json").write_text(json.dumps(raw, indent=1) + "\n")
    if major == "5":
        ropes = [rope(raw) for raw in tiny_hf.ROPES]
        (tiny_hf.GOLDEN / "ropes.json").write_text(json.dumps(ropes) + "\n")
    (tiny_hf.GOLDEN / "shapes.json").write_text(json.dumps(shapes) + "\n")
    np.savez(stored, **logits)


if __name__ == "__main__":
    main()
