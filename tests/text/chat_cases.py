"""Chat templates of every kind that there is to read, conversations, and a small tokenizer.json.

Imported by the tests and by `make_chat_golden.py`, which runs where mcr_jax is not installed.
"""

import json
import pathlib

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

TODAY = (2031, 7, 4)  # what strftime_now is told

SPECIAL = (
    *("<|bos|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>"),
    *("<|eot|>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
)
ADDED = ("<think>", "</think>", "<[You]>", "<[Me]>", "<tool>", "</tool>")  # not marked special

# The tokens of more than one byte, in which "Ġ" is a space and "Ċ" the end of a line.
_WORDS = (
    *("Violet", "Ġnails", "Ġfor", "Ġweeks", "What", "Ġis", "Ġit", "Ġturn", "answer", "Lantern"),
    *("Ġlung", "ĊĊĊ", "user", "Today", "think"),
)

# Lines end a piece, so that what follows a turn's head does not change how the head is read.
_SPLIT = r" ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"

# A default system turn, tools that are absent, no beginning token, a newline after each turn.
CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\n<tool>' ~ (tools | tojson) ~ '</tool><|im_end|>\\n' }}
{%- elif messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou keep the lantern.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# Trimmed contents, today's date, a system turn that is always there.
HEADERS = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "1 Jan 2000" %}
    {%- endif %}
{%- endif %}
{%- set said = messages[0]['content'] | trim if messages[0]['role'] == 'system' else '' %}
{%- set messages = messages[1:] if messages[0]['role'] == 'system' else messages %}
{{- '<|head|>system<|/head|>\\n\\nToday: ' + date_string + '\\n\\n' + said + '<|eot|>' }}
{%- for message in messages if not ('tool_calls' in message or message.role == 'tool') %}
    {{- '<|head|>' + message['role'] + '<|/head|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|head|>assistant<|/head|>\\n\\n' }}
{%- endif %}
"""

# Turns that must alternate, a system turn put before the first question, another name for a role.
TURNS = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first = messages[0]['content'] + '\\n\\n' -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set first = '' -%}
    {%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Questions and answers must alternate.") }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- else -%}
        {{ message['content'] | map(attribute='text') | join(' ') }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""

# Thinking is cut out of every answer that is shown, and opened for the one to come.
CUT = """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(system='') %}
{%- for message in messages if message['role'] == 'system' %}
{%- set ns.system = ns.system + message['content'] %}
{%- endfor %}
{{- bos_token }}{{ ns.system }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{{ '<[You]>' + message['content'] }}{% endif %}
{%- if message['role'] == 'assistant' %}
{%- set content = message['content'] %}
{%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
{{- '<[Me]>' + content + eos_token }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<[Me]><think>\\n' }}{% endif %}
"""

# Thinking stays in the answers to the last question, and an empty one is written where none is.
KEPT = """\
{%- set ns = namespace(last=-1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' %}
        {%- set ns.last = messages | length - 1 - loop.index0 %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role != 'assistant' %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
        {%- continue %}
    {%- endif %}
    {%- set thought = '' %}
    {%- set content = message.content %}
    {%- if '</think>' in content %}
        {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if loop.index0 > ns.last %}
        {{- '<think>\\n' ~ thought ~ '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- content ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

# The assistant's words marked by the template, a macro, JSON that holds what HTML would escape.
MARKED = """\
{%- macro head(role) -%}
<|head|>{{ role }}<|/head|>
{%- endmacro -%}
{%- set meta = {"b": "<&'é>", "a": [1, none, true]} -%}
{{ meta | tojson }}{{ meta | tojson(indent=2) }}
{% for message in messages %}
    {%- if message.role == "assistant" -%}
        {{ head("assistant") }}
{% generation %}{% set seen = true %}{{ message.content }}<|eot|>{% endgeneration %}

    {%- else -%}
        {{ head(message.role) }}{{ "\\n" ~ message.content ~ "\\n" }}
    {%- endif %}
    {{- "!" if seen is defined }}
{% endfor %}
{%- if add_generation_prompt %}{{ head("assistant") }}{{ "\\n" }}{% endif %}
"""

_NAMED = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": CHATML}]

# What a folder's tokenizer_config.json holds beside nothing else.
CONFIGS = {
    "chatml": {"chat_template": CHATML, "eos_token": "<|im_end|>", "pad_token": "<|end_of_text|>"},
    "headers": {"chat_template": HEADERS, "bos_token": "<|bos|>", "eos_token": "<|eot|>"},
    "turns": {"chat_template": TURNS, "bos_token": "<bos>", "eos_token": "<eos>"},
    "cut": {
        "chat_template": CUT,
        "bos_token": {"__type": "AddedToken", "content": "<|bos|>", "normalized": False},
        "eos_token": {"__type": "AddedToken", "content": "<|end_of_text|>", "normalized": False},
    },
    "kept": {"chat_template": KEPT, "bos_token": None, "eos_token": "<|im_end|>"},
    "marked": {"chat_template": MARKED, "eos_token": "<|eot|>"},
    "named": {"chat_template": _NAMED, "eos_token": "<|im_end|>"},
}
TEMPLATE_OPTIONS = {"kept": {"enable_thinking": False}, "headers": {"date_string": "9 Mar 2030"}}

_FIRST = {
    "role": "user",
    "content": "Violet nails for 2 weeks,\n\n  é́ 中文 😀 <b>&amp;</b>. What is it? ",
}
_ANSWER = "<think>\nMoons turn violet in damp towers.\n</think>\n<answer>Lantern lung</answer>"
_SECOND = {"role": "user", "content": " And\tin winter?"}
_SYSTEM = {"role": "system", "content": "Answer as the keeper of Saltholm would.\n"}
CONVERSATIONS = {
    "asked": [_FIRST],
    "with a system turn": [_SYSTEM, _FIRST],
    "answered": [_FIRST, {"role": "assistant", "content": _ANSWER}],
    "answered in a word": [_FIRST, {"role": "assistant", "content": "Frost."}],
    "asked again": [_SYSTEM, _FIRST, {"role": "assistant", "content": _ANSWER}, _SECOND],
    "answered twice": [
        _FIRST,
        {"role": "assistant", "content": _ANSWER},
        _SECOND,
        {"role": "assistant", "content": _ANSWER},
    ],
    "asked twice at once": [_FIRST, _SECOND],
}


def tokenizer_json() -> str:
    """A byte-level BPE tokenizer of some 400 ids, written down rather than trained."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = {(word[:i], word[i]): None for word in _WORDS for i in range(1, len(word))}
    vocab = [*alphabet, *("".join(pair) for pair in merges)]
    ids = {piece: i for i, piece in enumerate(vocab)}
    made = Tokenizer(models.BPE(vocab=ids, merges=list(merges)))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    made.add_tokens([AddedToken(text, normalized=False) for text in ADDED])
    return made.to_str()


def write_folder(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Makes `folder` hold the tokenizer with the config of that name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **CONFIGS[name]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
