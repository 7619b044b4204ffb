"""Export of a SentencePiece model trained here as files that transformers loads."""

import json
from collections.abc import Iterator

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from mcr_jax.errors import McrError
from mcr_jax.text import sentencepiece_proto as spm
from mcr_jax.text.plain_chat import TEMPLATE
from mcr_jax.text.sentencepiece_model import SentencePieceModel
from mcr_jax.text.tokenizer_folder import CONFIG, JSON

_SPACE = "\u2581"  # SentencePiece's space


def files(model: SentencePieceModel) -> dict[str, bytes]:
    """Returns the content of tokenizer.json and tokenizer_config.json, by name.

    They give the same ids as the model, for conversations in the plain layout, too. The one
    difference: the texts of control pieces, such as `</s>`, are encoded as those pieces.

    Raises:
      McrError: the model is not BPE with byte fallback, or normalizes text.
    """
    proto = model.proto()
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if (
        trainer.model_type != spm.BPE
        or not trainer.byte_fallback
        or trainer.treat_whitespace_as_suffix
        or normalizer.name != "identity"
        or normalizer.add_dummy_prefix
        or normalizer.remove_extra_whitespaces
    ):
        raise McrError("only a tokenizer that was trained here can be written as tokenizer.json")
    unknown = proto.pieces[trainer.unk_id].piece
    made = Tokenizer(
        models.BPE(
            vocab={piece.piece: i for i, piece in enumerate(proto.pieces)},
            merges=list(_merges(proto)),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    made.normalizer = normalizers.Replace(" ", _SPACE)
    made.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    control = (spm.CONTROL, spm.UNKNOWN)
    made.add_tokens(
        [
            AddedToken(piece.piece, special=piece.type in control, normalized=False)
            for piece in proto.pieces
            if piece.type in (*control, spm.USER_DEFINED)
        ]
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": unknown,
        "eos_token": proto.pieces[model.eos_id].piece,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    return {
        JSON: made.to_str(pretty=True).encode("utf-8"),
        CONFIG: (json.dumps(config, indent=1) + "\n").encode("utf-8"),
    }


def _merges(proto: spm.ModelProto) -> Iterator[tuple[str, str]]:
    """Yields every pair that makes a piece, in SentencePiece's order of merges."""
    normal = [piece for piece in proto.pieces if piece.type == spm.NORMAL]
    known = {piece.piece for piece in normal}
    for piece in sorted(normal, key=lambda piece: -piece.score):
        for cut in range(1, len(piece.piece)):
            pair = piece.piece[:cut], piece.piece[cut:]
            if known.issuperset(pair):
                yield pair
