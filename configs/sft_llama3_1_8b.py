"""Fine-tunes Llama 3, 1B to 70B, on MedCaseReasoning; planned for 8B.

    hf download meta-llama/Llama-3.1-8B-Instruct --local-dir=DIR
    mcr build
    mcr train --config=sft_llama3_1_8b --config.model.folder=DIR --workdir=runs/l8b
    mcr eval --workdir=runs/l8b

`:lora` after the name trains adapters of rank 32 with frozen weights. DIR is a snapshot of the
model's repository, meta-llama/Llama-3.1-8B-Instruct. The judge is Gemini and needs GEMINI_API_KEY.

DIR may hold another size of the family. --plan takes it as --config.model.shape: llama3_2_1b,
llama3_2_3b and llama3_1_70b.

Memory per device by `mcr train --plan="8 x H100"` and so on, which needs no DIR:

    full   8 x H100       29.2 GB of 80
    full   16 x v6e       18.4 GB of 32
    lora   8 x v5e        11.4 GB of 16
    lora   1 x A100-40GB  21.6 GB of 40   --config.train.accumulate=16

No result is known yet.
"""

from ml_collections import ConfigDict

from mcr_jax.configs._sft import sft


def get_config(arg: str = "full") -> ConfigDict:
    """Returns the config; `arg` is "full" or "lora"."""
    name = "SFT of Llama 3"
    return sft(arg, name=name, shape="llama3_1_8b", rate=1e-5, lora_rate=2e-4)
