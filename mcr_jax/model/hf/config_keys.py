"""Keys of a config.json: those that are read, those without effect, and those that are refused.

A key is refused only if it may change the numbers. It passes if it is in one of the tables here,
begins with `_`, names a token, or has a value that is null, false, 0 or empty. Any other unknown
key is refused if its name sounds like something a decoder computes; the rest are reported in one
warning. `number` and `flag` read the values.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

_MAX_WARNED_KEYS = 8
_MAX_NAME_CHARS = 120  # in a message
_MAX_NUMBER = 1e12  # in a config; bounds what a broken file can make this process allocate

# Keys that `config_json` reads.
_READ_KEYS = """
vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
num_key_value_heads head_dim hidden_act hidden_activation rms_norm_eps tie_word_embeddings
rope_theta rope_scaling rope_local_base_freq rope_parameters sliding_window
sliding_window_pattern use_sliding_window max_window_layers layer_types query_pre_attn_scalar
"""

# Keys of which the decoder computes these values only.
_REQUIRED: Mapping[str, tuple] = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "use_bidirectional_attention": (False, None),
    "use_mrope": (False, None),
    "mrope_section": (None, []),
    "rope_interleaved": (False, None),
    "partial_rotary_factor": (1, None),
    "is_causal": (True, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "pruned_heads": ({}, None),
}
_QUANTIZED = ("quantization_config", "compression_config", "quantization")  # the last is MLX's

# Keys without effect on the logits: those of transformers' PreTrainedConfig that are not above.
_TRANSFORMERS_KEYS = """
architectures attribute_map auto_map bad_words_ids base_model_ep_plan base_model_fsdp_plan
base_model_pp_plan base_model_tp_plan begin_suppress_tokens chunk_size_feed_forward
cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype
early_stopping encoder_no_repeat_ngram_size experts_implementation
exponential_decay_length_penalty finetuning_task fsdp_plan id2label initializer_range
is_composition is_decoder keys_to_ignore_at_inference label2id length_penalty loss_type max_length
max_new_tokens max_position_embeddings min_length model_type name_or_path no_repeat_ngram_size
num_beam_groups num_beams num_labels num_return_sequences output_attentions output_hidden_states
output_logits output_router_logits output_scores prefix problem_type remove_invalid_values
repetition_penalty return_dict return_dict_in_generate sub_configs suppress_tokens
task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p
torch_dtype torchscript transformers_version transformers_weights typical_p use_bfloat16 use_cache
use_return_dict xla_device
"""

# Other keys without effect: of training, of attention kernels and caches, of serving, and of the
# image half of a multimodal folder.
_OTHER_KEYS = """
attention_dropout attn_dropout attn_implementation attention_implementation cache_dtype
cache_implementation classifier_dropout context_length context_window embd_pdrop flash_attention
flash_attn gradient_checkpointing hidden_dropout initializer_scale is_llama_config kv_cache_dtype
max_seq_len max_seq_length max_sequence_length mm_tokens_per_image model_max_length n_ctx
n_positions num_logits_to_keep pretraining_tp quantized_by resid_pdrop seq_len seq_length
text_config transformers.js_config use_flash_attention use_flash_attention_2 use_flash_attn
vision_config
"""
_KNOWN = frozenset((_READ_KEYS + _TRANSFORMERS_KEYS + _OTHER_KEYS).split()) | _REQUIRED.keys()
_HARMLESS = re.compile(r"_.*|(unsloth|vllm|trl|wandb)_.*|.*_token(s?_ids?|_index)?")

# Parts of the names of things that a decoder computes. Short ones must be at an end of a word:
# `extra_properties` and `capabilities` are not about rope and caps.
_COMPUTED = re.compile(
    r"attention|attn|norm|scal(e|ing|ar)|multiplier|window|expert|residual|bias|quant|rotary"
    r"|alibi|router|qkv|logit|activation|position"
    r"|\b(rope|moe)|(rope|moe|cap|caps|capping)\b"
)


def refuse(keys: Mapping[str, Any], ignore: Collection[str] = ()) -> None:
    """Raises ValueError with the name of the first key that may change the numbers.

    Args:
      keys: a parsed config.json, or a part of it.
      ignore: keys to pass over.
    """
    for key in _QUANTIZED:
        if keys.get(key) and key not in ignore:
            by = keys[key].get("quant_method") if isinstance(keys[key], Mapping) else None
            raise ValueError(
                f"{key}: the weights are quantized{f' by {by}' if by else ''}, which this decoder "
                "does not read: take the folder of the unquantized model"
            )
    for key, allowed in _REQUIRED.items():
        if key in keys and key not in ignore and keys[key] not in allowed:
            raise ValueError(f"{key} = {keys[key]!r}: this decoder only has {allowed[0]!r}")
    for key in _unknown(keys, ignore):
        if _COMPUTED.search(_words(key)):
            raise ValueError(
                f"unknown key {shown(key)!r}: it may change the numbers; if it does not, name it "
                "in config.model.ignore, or in hf.load's ignore"
            )


def passed_over(keys: Mapping[str, Any], ignore: Collection[str] = ()) -> str:
    """Lists the unknown keys that `refuse` lets pass, as one line; "" if there are none."""
    unknown, most = list(_unknown(keys, ignore)), _MAX_WARNED_KEYS
    more = f" and {len(unknown) - most} more" if len(unknown) > most else ""
    return ", ".join(repr(shown(key)) for key in unknown[:most]) + more


def _unknown(keys: Mapping[str, Any], ignore: Collection[str]) -> Iterator[str]:
    for key, value in keys.items():
        if value and key not in ignore and key not in _KNOWN and not _HARMLESS.fullmatch(key):
            yield key


def _words(key: str) -> str:
    """Splits a key into words in small letters: `useQKNorm.v2` is `use qknorm v2`."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", key)
    return re.sub(r"[\W_]+", " ", apart).lower()


def shown(text: str, longest: int = _MAX_NAME_CHARS) -> str:
    """Shortens text from a downloaded file for a message, and drops control codes."""
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    return "".join(c if c.isprintable() else "?" for c in cut)


def number(
    values: Mapping[str, Any],
    key: str,
    kind: type = int,
    default: Any = None,
    least: float | None = None,
) -> Any:
    """Reads a number, at least `least` or positive. Raises ValueError naming the key."""
    value = values.get(key, default)
    if value is None:
        raise ValueError(f"{key} is missing")
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not known or not abs(value) < _MAX_NUMBER or value != kind(value):
        raise ValueError(f"{key} is not {'a whole' if kind is int else 'a'} number: {value!r}")
    if value < least if least is not None else value <= 0:
        raise ValueError(f"{key} is too small: {value!r}")
    return kind(value)


def flag(values: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """Reads true or false. Raises ValueError naming the key for anything else."""
    value = values.get(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"{key} is neither true nor false: {value!r}")
    return value
