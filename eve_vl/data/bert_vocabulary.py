"""BERT's vocab.txt: one WordPiece token per line."""

import tokenizers
from tokenizers import Tokenizer

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def wordpiece_tokenizer(vocab_text: str, is_lower: bool) -> Tokenizer:
    """Build the usual WordPiece tokenizer from the text of a vocab.txt."""
    lines = vocab_text.removesuffix("\n").split("\n")
    vocab = {line.rstrip(): number for number, line in enumerate(lines)}
    tokenizer = tokenizers.BertWordPieceTokenizer(vocab, lowercase=is_lower)._tokenizer
    # the file lists special tokens as ordinary ones; declare them for masks and decoding
    tokenizer.add_special_tokens([name for name in SPECIAL_TOKENS if name in vocab])
    return tokenizer
