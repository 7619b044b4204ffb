"""Fine-tunes MedGemma 27B, the text-only variant, on MedCaseReasoning.

    hf download google/medgemma-27b-text-it --local-dir=DIR
    mcr build
    mcr train --config=sft_medgemma_27b --config.model.folder=DIR --workdir=runs/mg27b
    mcr eval --workdir=runs/mg27b

`:lora` after the name trains adapters of rank 32 with frozen weights. DIR is a snapshot of the
model's repository, google/medgemma-27b-text-it. The judge is Gemini and needs GEMINI_API_KEY.

Memory per device by `mcr train --plan="8 x H100"` and so on, which needs no DIR:

    full   8 x H200       83.5 GB of 141
    full   16 x v5p       50.2 GB of 95
    lora   8 x v6e        25.1 GB of 32
    lora   1 x H200       65.3 GB of 141   --config.train.accumulate=16

No result is known yet.
"""

from ml_collections import ConfigDict

from mcr_jax.configs._sft import sft


def get_config(arg: str = "full") -> ConfigDict:
    """Returns the config; `arg` is "full" or "lora"."""
    name = "SFT of MedGemma 27B"
    return sft(arg, name=name, shape="medgemma_27b", rate=5e-6, lora_rate=1e-4)
