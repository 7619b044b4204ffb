"""Fine-tunes the text half of MedGemma 4B on MedCaseReasoning.

    mcr build --source=MedCaseReasoning
    mcr train --config=configs/sft_medgemma_4b.py --config.model.folder=DIR --workdir=runs/mg4b
    mcr eval --workdir=runs/mg4b

With `:lora` after `.py` adapters of rank 32 are trained beside frozen weights. DIR is a snapshot of
the model's repository, google/medgemma-4b-it, and MedCaseReasoning one of the data's: nothing is
downloaded. The judge is Gemini and wants GEMINI_API_KEY.

Memory of each device, by `mcr train --plan="8 x H100"` and the like, which needs no DIR:

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
    name = "SFT of MedGemma 4B"
    return sft(arg, name=name, shape="medgemma_4b", rate=1e-5, lora_rate=2e-4)
