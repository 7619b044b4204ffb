"""Converts a published GGUF model to a Hugging Face folder in float32.

    PYTHON tests/integration/gguf_to_folder.py FILE.gguf OUT

PYTHON has torch, transformers and gguf (`make reference`). The weights are rounded by
quantization: good for tests of loading, training and sampling, not for results.
"""

import pathlib
import sys

import torch
import transformers


def main(gguf: pathlib.Path, out: pathlib.Path) -> None:
    """Reads `gguf` and writes config, weights and the tokenizer's files into `out`."""
    given = {"gguf_file": gguf.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **given)
    read = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.float32, **given
    )
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights that are written are not quantized
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
