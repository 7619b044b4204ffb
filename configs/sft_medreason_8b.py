"""Fine-tunes MedReason-8B, a Llama-3.1-8B trained on medical reasoning, on MedCaseReasoning.

    hf download UCSC-VLAA/MedReason-8B --local-dir=DIR
    mcr build
    mcr train --config=sft_medreason_8b --config.model.folder=DIR --workdir=runs/mr8b
    mcr eval --workdir=runs/mr8b

`:lora` after the name trains adapters of rank 32 with frozen weights. DIR is a snapshot of the
model's repository, UCSC-VLAA/MedReason-8B. The judge is Gemini and needs GEMINI_API_KEY.

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
    name = "SFT of MedReason-8B"
    return sft(arg, name=name, shape="llama3_1_8b", rate=1e-5, lora_rate=2e-4)
