"""Computes logits or continuations of a folder with transformers, in float32.

    PYTHON tests/integration/reference_model.py FOLDER IN.json OUT

IN.json has {"tokens": [...]}: OUT.npy gets their logits. Or {"prompts": [[messages]...], "new": N}:
OUT.json gets the greedy continuation of N tokens after each prompt, in the folder's chat template,
as text.
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers


def main(folder: str, given: pathlib.Path, out: pathlib.Path) -> None:
    asked = json.loads(given.read_text(encoding="utf-8"))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        if "tokens" in asked:
            logits = model(torch.tensor([asked["tokens"]])).logits[0].numpy()
            np.save(out.with_suffix(".npy"), logits)
            return
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        texts = []
        for messages in asked["prompts"]:
            ids = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
            made = model.generate(**ids, do_sample=False, max_new_tokens=asked["new"])
            new = made[0, ids["input_ids"].shape[1] :]
            texts.append(tokenizer.decode(new, skip_special_tokens=True))
    out.with_suffix(".json").write_text(json.dumps(texts), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], *map(pathlib.Path, sys.argv[2:]))
