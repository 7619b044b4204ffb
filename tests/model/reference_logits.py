"""Logits of model folders as transformers computes them, in float32, of `tiny_hf.tokens()`.

    PYTHON tests/model/reference_logits.py FOLDER...

writes FOLDER/logits.npy for each, of the model with the adapters in FOLDER/adapters through PEFT if
there are any. PYTHON has torch, transformers and peft (`make reference`).
"""

import pathlib
import sys

import numpy as np
import tiny_hf
import torch
import transformers

for folder in map(pathlib.Path, sys.argv[1:]):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if (folder / "adapters").exists():
        import peft

        model = peft.PeftModel.from_pretrained(model, folder / "adapters").eval()
    with torch.no_grad():
        np.save(folder / "logits.npy", model(torch.from_numpy(tiny_hf.tokens())).logits.numpy())
