"""Our SentencePiece tokenizer as files of a Hugging Face fast tokenizer, which gives the same ids."""

from pathlib import Path
from typing import Any

from fast_electra.corpus.pieces import SPACE
from fast_electra.corpus.sentencepiece_tokenizer import SPECIAL_PIECES, SentencePieceTokenizer
from fast_electra.corpus.tokenizer import Tokenizer
from fast_electra.files import write_json, write_text
from fast_electra.settings import UserError

MARKER = "tokenizer_config.json"  # every export holds it, and no folder of a run does
FIRST_PIECE = len(SPECIAL_PIECES) + 256  # id of the first piece of text: the special tokens and the bytes come before
WORD = r"\n| *[^ \n]+| +"  # no piece crosses the border of two such words; see `corpus.sentencepiece_tokenizer`


def write_tokenizer(tokenizer: Tokenizer, folder: Path, length: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json.

    Text is framed as [CLS] a [SEP], and a pair as [CLS] a [SEP] b [SEP]. Unlike ours, this tokenizer reads the name of
    a special token in a text as that token.

    Args:
        tokenizer: must be ours.
        folder: exists.
        length: tokens to which users' texts are cut if they ask for it, [CLS] and [SEP] included.

    Raises:
        UserError: it is not ours, or the package `tokenizers` is not installed.
    """
    if not isinstance(tokenizer, SentencePieceTokenizer):
        remedy = "export a model with a tokenizer of `fast-electra tokenizer`"
        raise UserError(f"a model whose tokenizer is one of Hugging Face cannot be exported: {remedy}")
    write_text(folder / "tokenizer.json", convert(tokenizer).to_str(pretty=True))
    named = {f"{piece[1:-1].lower()}_token": piece for piece in SPECIAL_PIECES}
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": length,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
    }
    write_json(folder / MARKER, described | named)
    write_json(folder / "special_tokens_map.json", named)


def convert(tokenizer: SentencePieceTokenizer) -> Any:
    """Return a `tokenizers.Tokenizer` with the same ids, which frames its texts.

    SentencePiece joins the pair of neighbours that forms the piece with the smallest id, the leftmost one first. So
    each way to split a piece of text into two pieces is a merge, and the merges are ranked by the id of the whole.
    """
    try:
        from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
        from tokenizers import Tokenizer as Fast
    except ImportError:
        raise UserError("exporting needs the package tokenizers: pip install 'fast_electra[hf]'") from None

    # There is no normaliser, so U+2581 in a text is spelt in bytes, as ours spells it.
    texts = [tokenizer.piece(token) for token in range(tokenizer.vocabulary_size)]
    texts[FIRST_PIECE:] = [text.replace(SPACE, " ") for text in texts[FIRST_PIECE:]]
    ids = {text: token for token, text in enumerate(texts)}
    pieces = set(texts[FIRST_PIECE:])
    splits = ((whole[:cut], whole[cut:]) for whole in texts[FIRST_PIECE:] for cut in range(1, len(whole)))
    merges = [(left, right) for left, right in splits if left in pieces and right in pieces]
    fast = Fast(models.BPE(vocab=ids, merges=merges, unk_token="[UNK]", byte_fallback=True, fuse_unk=False))
    if " " not in pieces:  # of text without spaces: SentencePiece then spells a space as the bytes of its own sign
        fast.normalizer = normalizers.Replace(" ", SPACE)
    fast.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="isolated")
    fast.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", tokenizer.cls_id), ("[SEP]", tokenizer.sep_id)],
    )
    # Without lstrip, the space before [MASK] would be a token of its own, which training has never seen there.
    tokens = [AddedToken(text, special=True, normalized=False, lstrip=text == "[MASK]") for text in SPECIAL_PIECES]
    fast.add_special_tokens(tokens)
    return fast
