"""Writes golden/lora.*: PEFT's files and logits of adapters on the tiny models of `tiny_hf`.

    PYTHON tests/model/make_lora_golden.py

where PYTHON has torch, transformers and peft. The adapters' values follow from their names and
shapes, as the weights' do.
"""

import json
import pathlib
import tempfile

import numpy as np
import peft
import safetensors.numpy
import tiny_hf
import torch
import transformers

ADAPTERS = {
    "llama3": {"r": 4, "lora_alpha": 6, "lora_dropout": 0.1, "target_modules": "all-linear"},
    "phi3": {"r": 4, "lora_alpha": 6, "target_modules": ["qkv_proj", "o_proj", "gate_up_proj"]},
    "gemma3": {
        "r": 3,
        "lora_alpha": 2,
        "use_rslora": True,
        "target_modules": r"model\.layers\.\d+\.(self_attn\.(q|v|o)|mlp\.(up|down))_proj",
    },
}


def golden(name: str) -> tuple[dict, dict, np.ndarray]:
    """Returns adapter_config.json as PEFT writes it, shapes of tensors, logits at `PLACES`."""
    shapes = json.loads((tiny_hf.GOLDEN / "shapes.json").read_text())[name]
    with tempfile.TemporaryDirectory() as folder:
        base, adapters = pathlib.Path(folder) / "base", pathlib.Path(folder) / "adapters"
        tiny_hf.write(base, tiny_hf.VARIANTS[name], tiny_hf.weights(name, shapes))

        def model() -> transformers.PreTrainedModel:
            return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)

        config = peft.LoraConfig(task_type="CAUSAL_LM", **ADAPTERS[name])
        peft.get_peft_model(model(), config).save_pretrained(adapters)
        raw = json.loads((adapters / "adapter_config.json").read_text())
        file = adapters / "adapter_model.safetensors"
        made = {key: value.shape for key, value in safetensors.numpy.load_file(file).items()}
        safetensors.numpy.save_file(tiny_hf.weights(name, made), file, {"format": "pt"})
        adapted = peft.PeftModel.from_pretrained(model(), adapters).eval()
        with torch.no_grad():
            logits = adapted(torch.from_numpy(tiny_hf.tokens())).logits.numpy()
    raw["base_model_name_or_path"] = None
    raw["target_modules"] = (
        raw["target_modules"]
        if isinstance(raw["target_modules"], str)
        else sorted(raw["target_modules"])  # a set, written in any order
    )
    return raw, made, logits[:, tiny_hf.PLACES]


def main() -> None:
    configs, shapes, logits = {}, {}, {}
    for name in ADAPTERS:
        configs[name], shapes[name], logits[name] = golden(name)
    raw = {"version": peft.__version__, "configs": configs, "shapes": shapes}
    (tiny_hf.GOLDEN / "lora.json").write_text(json.dumps(raw, indent=1) + "\n")
    np.savez(tiny_hf.GOLDEN / "lora.npz", **logits)


if __name__ == "__main__":
    main()
