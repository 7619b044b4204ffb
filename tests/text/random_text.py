"""Random Unicode strings of all the kinds that break tokenizers, the same for the same seed."""

import random
from collections.abc import Iterator, Sequence

_PLAIN = "A man of 45 came with violet nails, 2.5 mg/dL; his   mother's\n\n  moons\twere green. "
_ODD = (
    *(
        "\0",
        "\r\n",
        "  ",
        "\u00a0",
        "\ufeff",
        "\u200b",
        "\u200d",
        "e\u0301",
        "é",
        "ﬁ",
        "Å",
        "중",
        "文",
    ),
    *("👩‍⚕️", "🇨🇭", "\U000e0001", "\uffff", "\u2028", "µ", "½", "ß", "İ", "<0x41>", "▁", "Ġ"),
    *("<think>", "</think>", "<answer>", "</answer>", "<|", "|>", "</s>", "<s>", "<unk>"),
)


def strings(count: int, seed: int, extra: Sequence[str] = ()) -> Iterator[str]:
    """Yields `count` strings without surrogates; `extra` are pieces to put among the odd ones."""
    draw = random.Random(seed)
    odd = (*_ODD, *extra)
    for _ in range(count):
        kind, length = draw.randrange(4), draw.randrange(40)
        if kind == 0:  # anywhere in Unicode
            points = (draw.randrange(0x110000 - 0x800) for _ in range(length))
            yield "".join(chr(p if p < 0xD800 else p + 0x800) for p in points)
        elif kind == 1:  # the lower planes, where most scripts are
            points = (draw.randrange(draw.choice((0x80, 0x250, 0x3100))) for _ in range(length))
            yield "".join(map(chr, points))
        elif kind == 2:
            start = draw.randrange(len(_PLAIN))
            yield (_PLAIN * 3)[start : start + 3 * length]
        else:
            yield "".join(draw.choice((*odd, *_PLAIN)) for _ in range(length))
