"""Tokenizers of published CLIP and SigLIP models: merges, or SentencePiece pieces."""

from pathlib import Path
from typing import Any

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from eve_vl.data.tokenizer import Tokenizer
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import read_bytes, read_json, read_text

START = "<|startoftext|>"  # of CLIP's texts
END = "<|endoftext|>"
SIGLIP_ENDS = ("<eos>", "</s>")  # SigLIP 2 has both, the second for HTML
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
FILES = ("spiece.model", "tokenizer.json", "vocab.json")
"""Files of a tokenizer in a folder, the best first."""
SETTINGS = "tokenizer_config.json"


def read_published(path: Path, *, is_siglip: bool, cleans: bool) -> tuple[Tokenizer, int]:
    """Return the tokenizer of a published CLIP or SigLIP, and the id of its padding token.

    path: a file, or a folder with a spiece.model (SigLIP), a tokenizer.json, or CLIP's vocab.json
    and merges.txt. cleans: without punctuation, as SigLIP's own tokenizer does in any case. Raises
    UserError.
    """
    file = _tokenizer_file(path)
    backend = _read_backend(file)
    vocab = backend.get_vocab(with_added_tokens=True)
    is_sentencepiece = isinstance(backend.model, models.Unigram)
    end = END
    if is_siglip:
        end = next((name for name in SIGLIP_ENDS if name in vocab), END)
    else:
        _refuse_other_ends(file.parent)
    padding = _named_token(file.parent, "pad_token", "")
    if is_siglip and not is_sentencepiece and not padding:
        # SigLIP 2 pads all texts to one length with a token of its own, and reads the last one
        raise UserError(f"{file.parent / SETTINGS}: names no pad_token, which SigLIP's texts need")
    padding = padding or end
    missing = {end, padding} - vocab.keys()
    if missing:
        raise UserError(
            f"{file}: has no token {missing.pop()}, which these texts need;"
            " name another with --tokenizer"
        )
    if is_siglip:
        _clean_as_siglip(backend, without_punctuation=cleans or is_sentencepiece)
        backend.post_processor = processors.TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, vocab[end])]
        )
    return Tokenizer(backend, str(file), ends=True), vocab[padding]


def _tokenizer_file(path: Path) -> Path:
    """Return the file itself, or the best one of a folder. Raises UserError."""
    names = FILES if path.is_dir() else (path.name,)
    folder = path if path.is_dir() else path.parent
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{path}: holds no tokenizer ({', '.join(names)}); name the file with --tokenizer"
    )


def _read_backend(file: Path) -> Backend:
    """Read a tokenizer from any of its files. Raises UserError."""
    try:
        if file.suffix == ".model":
            return _sentencepiece_backend(file)
        if file.name == "vocab.json":
            return _clip_backend(file)
        return Backend.from_str(read_text(file))
    except ModuleNotFoundError as error:
        raise UserError(
            f"{file}: reading it needs {error.name}: pip install {error.name}"
        ) from None
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{file}: not a tokenizer ({error})") from None


def _refuse_other_ends(folder: Path) -> None:
    """Raise UserError if tokenizer_config.json puts other tokens around texts than CLIP's."""
    for field, expected in (("bos_token", START), ("eos_token", END)):
        token = _named_token(folder, field, expected)
        if token != expected:
            raise UserError(
                f"{folder / SETTINGS}: {field} {token!r} is not supported; only {expected!r} is"
            )


def _named_token(folder: Path, field: str, default: str) -> str:
    """Return the token that a field of tokenizer_config.json names; empty for null."""
    settings = folder / SETTINGS
    token = read_json(settings, dict).get(field, default) if settings.is_file() else default
    if isinstance(token, dict):
        token = token.get("content")
    return str(token or "")


def _clean_as_siglip(backend: Backend, *, without_punctuation: bool) -> None:
    """Put SigLIP's cleaning before a tokenizer's normalizer."""
    steps: list[Any] = [normalizers.Lowercase()]
    if without_punctuation:
        steps.append(normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""))
        steps.append(normalizers.Replace(Regex(r"\s+"), " "))
        steps.append(normalizers.Replace(Regex(r"^\s+|\s+$"), ""))
    if backend.normalizer:
        steps.append(backend.normalizer)
    backend.normalizer = normalizers.Sequence(steps)


def _clip_backend(file: Path) -> Backend:
    """Return CLIP's tokenizer of a vocab.json and the merges.txt next to it."""
    merges = file.with_name("merges.txt")
    model = models.BPE.from_file(str(file), str(merges), end_of_word_suffix="</w>")
    backend = Backend(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    by_words = pre_tokenizers.Split(Regex(CLIP_WORDS), "removed", invert=True)
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([by_words, by_bytes])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([START, END])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(name, backend.token_to_id(name)) for name in (START, END)],
    )
    return backend


def _sentencepiece_backend(file: Path) -> Backend:
    """Return SigLIP's tokenizer of a sentencepiece model, without its cleaning."""
    from sentencepiece import sentencepiece_model_pb2 as pb  # pyright: ignore[reportMissingImports]

    proto: Any = pb.ModelProto.FromString(read_bytes(file))
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    spec = proto.trainer_spec
    backend = Backend(models.Unigram(pieces, spec.unk_id, spec.byte_fallback))
    charsmap = proto.normalizer_spec.precompiled_charsmap
    precompiled = [normalizers.Precompiled(charsmap)] if charsmap else []
    backend.normalizer = normalizers.Sequence(precompiled)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="▁", prepend_scheme="always", split=False
    )
    backend.decoder = decoders.Metaspace()
    return backend
