"""Fine-tunes Gemma 3 and MedGemma, 270M to 27B, on MedCaseReasoning; planned for 4B.

    hf download google/medgemma-4b-it --local-dir=DIR
    mcr build
    mcr train --config=sft_medgemma_4b --config.model.folder=DIR --workdir=runs/mg4b
    mcr eval --workdir=runs/mg4b

`:lora` after the name trains adapters of rank 32 with frozen weights. DIR is a snapshot of the
model's repository, google/medgemma-4b-it. The judge is Gemini and needs GEMINI_API_KEY.

DIR may hold another size of the family. --plan takes it as --config.model.shape: gemma3_270m,
gemma3_1b, gemma3_12b and gemma3_27b.
Only the text part of models with image input is used.

Memory per device by `mcr train --plan="8 x H100"` and so on, which needs no DIR:

    full   16 x v5e       14.4 GB of 16
    full   1 x H200       85.3 GB of 141   --config.train.accumulate=16
    lora   8 x v5e         7.8 GB of 16
    lora   1 x L4         11.4 GB of 24   --config.train.accumulate=16

No result is known yet.
"""

from ml_collections import ConfigDict

from mcr_jax.configs._sft import sft


def get_config(arg: str = "full") -> ConfigDict:
    """Returns the config; `arg` is "full" or "lora"."""
    name = "SFT of Gemma 3 or MedGemma"
    return sft(arg, name=name, shape="medgemma_4b", rate=1e-5, lora_rate=2e-4)
