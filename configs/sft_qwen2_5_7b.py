"""Fine-tunes Qwen2.5, 0.5B to 32B, on MedCaseReasoning; planned for 7B.

    hf download Qwen/Qwen2.5-7B-Instruct --local-dir=DIR
    mcr build
    mcr train --config=sft_qwen2_5_7b --config.model.folder=DIR --workdir=runs/q7b
    mcr eval --workdir=runs/q7b

`:lora` after the name trains adapters of rank 32 with frozen weights. DIR is a snapshot of the
model's repository, Qwen/Qwen2.5-7B-Instruct. The judge is Gemini and needs GEMINI_API_KEY.

DIR may hold another size of the family. --plan takes it as --config.model.shape: qwen2_5_0_5b,
qwen2_5_1_5b, qwen2_5_3b, qwen2_5_14b and qwen2_5_32b.

Memory per device by `mcr train --plan="8 x H100"` and so on, which needs no DIR:

    full   8 x H100       28.4 GB of 80
    full   16 x v6e       18.2 GB of 32
    lora   8 x v5e        11.3 GB of 16
    lora   1 x A100-40GB  20.7 GB of 40   --config.train.accumulate=16

No result is known yet.
"""

from ml_collections import ConfigDict

from mcr_jax.configs._sft import sft


def get_config(arg: str = "full") -> ConfigDict:
    """Returns the config; `arg` is "full" or "lora"."""
    name = "SFT of Qwen2.5"
    return sft(arg, name=name, shape="qwen2_5_7b", rate=1e-5, lora_rate=2e-4)
