"""Verbs that use a run on pictures and texts at hand, one call of `eve_vl.Eve` each.

answer, match, judge, fill-mask, reconstruct, look, encode.
"""

import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from eve_vl.cli.common import check_writable, parse, say, write_bytes, write_json
from eve_vl.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from eve_vl.eve import Eve

SHOWN_SIDE = 224  # pixels; smaller pictures are written enlarged by a whole number, so that people see something
GAP = 8


@dataclass(frozen=True, kw_only=True)
class _RunArgs:
    run: Positional[Path]
    """Run folder, or one of its checkpoints."""


@dataclass(frozen=True, kw_only=True)
class _JsonArgs:
    json: Path | None = None
    """Also write the result to this file."""


@dataclass(frozen=True, kw_only=True)
class AnswerArgs(_JsonArgs, _RunArgs):
    """Flags of `eve answer`."""

    image: Positional[Path]
    """Picture file."""
    question: Positional[str]
    """What to ask."""
    top: int = 5
    """How many answers to show."""


@dataclass(frozen=True, kw_only=True)
class MatchArgs(_JsonArgs, _RunArgs):
    """Flags of `eve match`."""

    image: Positional[Path]
    """Picture file."""
    text: Positional[str]
    """What may be true of it."""


@dataclass(frozen=True, kw_only=True)
class JudgeArgs(_JsonArgs, _RunArgs):
    """Flags of `eve judge`."""

    left: Positional[Path]
    """Picture file, on the left."""
    right: Positional[Path]
    """Picture file, on the right."""
    statement: Positional[str]
    """What may be true of the two."""


@dataclass(frozen=True, kw_only=True)
class FillMaskArgs(_JsonArgs, _RunArgs):
    """Flags of `eve fill-mask`."""

    image: Positional[Path]
    """Picture file."""
    text: Positional[str]
    """Text with one or more [MASK]."""
    top: int = 5
    """How many guesses to show for each."""


@dataclass(frozen=True, kw_only=True)
class ReconstructArgs(_RunArgs):
    """Flags of `eve reconstruct`."""

    image: Positional[Path]
    """Picture file."""
    text: Positional[str]
    """Its caption."""
    out: Path = Path("reconstruct.png")
    """Picture to write: original, masked, rebuilt."""
    share: float | None = None
    """Share of patches to hide; default: as in pre-training."""
    seed: int = 0
    """Which patches are hidden."""


@dataclass(frozen=True, kw_only=True)
class LookArgs(_JsonArgs, _RunArgs):
    """Flags of `eve look`."""

    image: Positional[Path]
    """Picture file; of a statement, the left one."""
    text: Positional[str]
    """Question, statement or caption."""
    right: Path | None = None
    """Of a statement: the picture on the right."""
    word: str | None = None
    """Word or phrase of the text whose attention is shown; default: the whole text. A pre-trained run needs one, to hide."""
    answer: str | None = None
    """Of a question: an answer to look for; default: the run's own."""
    block: int | None = None
    """Block whose attention is shown, 0 for the first, -1 for the last; default: the one that points best."""
    out: Path = Path("look.png")
    """Picture to write: the picture under its heat map, blue to red."""


@dataclass(frozen=True, kw_only=True)
class EncodeArgs(_RunArgs):
    """Flags of `eve encode`."""

    images: Positional[tuple[Path, ...]] = ()
    """Picture files."""
    texts: tuple[str, ...] = ()
    """Texts."""
    out: Path = Path("features.npz")
    """File to write: images and texts, and image_features and text_features of as many rows."""
    batch_size: int = 64
    """How many to compute at a time."""


def run_answer(argv: Sequence[str]) -> None:
    """Answer a question about a picture: eve answer RUN IMAGE "QUESTION"."""
    args = parse(AnswerArgs, argv, "eve answer", _help(run_answer, 'runs/vqa/scenes photo.png "what color is the star"'))
    check_writable(args.json)
    answers = _load(args.run).answer(args.image, args.question, args.top)
    say("\n".join(f"{each.probability:7.4f}  {each.answer}" for each in answers))
    write_json(args.json, {"answers": [dataclasses.asdict(each) for each in answers]})


def run_match(argv: Sequence[str]) -> None:
    """Tell how likely a picture and a text belong together: eve match RUN IMAGE "TEXT"."""
    args = parse(MatchArgs, argv, "eve match", _help(run_match, 'runs/retrieval/scenes photo.png "a red star at the top"'))
    check_writable(args.json)
    probability = _load(args.run).match(args.image, args.text)
    say(f"{probability:.4f}")
    write_json(args.json, {"probability": probability})


def run_judge(argv: Sequence[str]) -> None:
    """Judge a statement about two pictures: eve judge RUN LEFT RIGHT "STATEMENT"."""
    example = 'runs/nlvr2/scenes left.png right.png "both pictures contain a star"'
    args = parse(JudgeArgs, argv, "eve judge", _help(run_judge, example))
    check_writable(args.json)
    judgement = _load(args.run).judge(args.left, args.right, args.statement)
    say(f"{str(judgement.verdict).lower()} (probability of being true {judgement.probability:.4f})")
    write_json(args.json, dataclasses.asdict(judgement))


def run_fill_mask(argv: Sequence[str]) -> None:
    """Guess the hidden words of a caption: eve fill-mask RUN IMAGE "a [MASK] circle"."""
    args = parse(FillMaskArgs, argv, "eve fill-mask", _help(run_fill_mask, 'runs/scenes photo.png "a [MASK] circle"'))
    check_writable(args.json)
    filled = _load(args.run).fill_mask(args.image, args.text, args.top)
    say(filled.text)
    for number, guesses in enumerate(filled.guesses, start=1):
        say(f"[MASK] {number}: " + ", ".join(f"{guess.text} {guess.probability:.4f}" for guess in guesses))
    write_json(args.json, dataclasses.asdict(filled))


def run_reconstruct(argv: Sequence[str]) -> None:
    """Hide most of a picture and rebuild it from its caption: eve reconstruct RUN IMAGE "TEXT" --out pic.png."""
    example = 'runs/scenes photo.png "big red star top left" --out rebuilt.png'
    args = parse(ReconstructArgs, argv, "eve reconstruct", _help(run_reconstruct, example))
    check_writable(args.out)
    _picture_format(args.out)
    shown = _load(args.run).reconstruct(args.image, args.text, share=args.share, seed=args.seed)
    _write_pictures(args.out, [shown.original, shown.masked, shown.rebuilt])
    say(f"{args.out}: original, masked, rebuilt")


def run_look(argv: Sequence[str]) -> None:
    """Show where in a picture the answer comes from (Grad-CAM): eve look RUN IMAGE "TEXT" --word star --out heat.png."""
    example = 'runs/vqa/scenes photo.png "what color is the star" --word star --out heat.png'
    args = parse(LookArgs, argv, "eve look", _help(run_look, example))
    check_writable(args.out, args.json)
    _picture_format(args.out)
    images = args.image if args.right is None else [args.image, args.right]
    found = _load(args.run).look(images, args.text, word=args.word, answer=args.answer, block=args.block)
    _write_pictures(args.out, found.overlays())
    asked = "the text" if found.word is None else f'"{found.word}"'
    say(f"{args.out}: what speaks for {found.score} (probability {found.probability:.4f}) to {asked}, block {found.block}")
    numbers = {"score": found.score, "probability": found.probability, "word": found.word, "block": found.block}
    write_json(args.json, numbers | {"grids": [grid.tolist() for grid in found.grids]})


def run_encode(argv: Sequence[str]) -> None:
    """Write features of pictures and texts to a NumPy file: eve encode RUN PATH … --texts "TEXT" … --out features.npz."""
    example = 'runs/retrieval/scenes photos/*.png --texts "a star" "a ring" --out features.npz'
    args = parse(EncodeArgs, argv, "eve encode", _help(run_encode, example))
    check_writable(args.out)
    if not args.images and not args.texts:
        raise UserError("nothing to encode: name picture files, or texts with --texts")
    import numpy as np

    eve, arrays = _load(args.run), {}
    if args.images:
        arrays |= {"images": np.array(list(map(str, args.images)))}
        arrays |= {"image_features": eve.encode_image(args.images, args.batch_size)}
    if args.texts:
        arrays |= {"texts": np.array(args.texts), "text_features": eve.encode_text(args.texts, args.batch_size)}
    file = io.BytesIO()
    np.savez(file, **arrays)
    write_bytes(args.out, file.getvalue())
    say(f"{args.out}: " + ", ".join(f"{name} {array.shape}" for name, array in arrays.items() if "features" in name))


def _load(run: Path) -> "Eve":
    from eve_vl.eve import Eve

    return Eve.load(run)


def _help(verb: Any, example: str) -> str:
    name = verb.__name__.removeprefix("run_").replace("_", "-")
    return f"{verb.__doc__}\n\nexample: eve {name} {example}"


def _write_pictures(path: Path, pictures: Sequence["np.ndarray"]) -> None:
    """Write uint8 pictures side by side, in the format of the file's name."""
    from PIL import Image

    factor = max(1, SHOWN_SIDE // max(max(picture.shape[:2]) for picture in pictures))
    images = [Image.fromarray(picture) for picture in pictures]
    images = [image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST) for image in images]
    width = sum(image.width for image in images) + GAP * (len(images) - 1)
    sheet, left = Image.new("RGB", (width, max(image.height for image in images)), "white"), 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width + GAP
    file = io.BytesIO()
    sheet.save(file, _picture_format(path))
    write_bytes(path, file.getvalue())


def _picture_format(path: Path) -> str:
    """Return the format of a picture file to write. Raises UserError for an unknown one."""
    from PIL import Image

    name = Image.registered_extensions().get(path.suffix.lower())
    if name not in Image.SAVE:
        raise UserError(f"{path}: cannot write pictures with the ending {path.suffix!r}; name it .png")
    return name
