"""Verbs that apply a run to images and texts: encode, and one for each call."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from eve_vl.cli.common import (
    DeviceArgs,
    JsonArgs,
    RunArgs,
    SourceArgs,
    check_writable,
    fail,
    parse,
    print_line,
    write_json,
)
from eve_vl.config import DataConfig
from eve_vl.config.kinds import kinds_of
from eve_vl.predict.requests import Request
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import atomic_file
from eve_vl.utils.frozen import Frozen

if TYPE_CHECKING:
    import numpy as np

SHOWN_SIDE = 224  # pixels; smaller images are enlarged by a whole number before they are written
GAP = 8
FEATURE_FILES = (".npz", ".safetensors")


class ImageArgs(Frozen):
    """Flag of calls whose result is an image."""

    out: Path = Path("image.png")
    """Image to write."""


class EncodeArgs(SourceArgs, DeviceArgs, RunArgs):
    """Flags of `eve encode`."""

    images: Positional[tuple[str, ...]] = ()
    """Image files, folders of images, tables or shards."""
    texts: tuple[str, ...] = ()
    """Texts."""
    texts_of: tuple[Path, ...] = ()
    """Files of texts or tables whose texts to encode."""
    out: Path = Path("features.npz")
    """File to write, .npz or .safetensors: image_features and text_features, and the names of their rows, `images` and `texts`,
    and `skipped` rows as JSON lists (an array of one JSON text each in .npz, metadata in .safetensors)."""
    batch_size: int = 64
    """Images or texts to compute at a time."""


def call_verbs() -> dict[str, Callable[[Sequence[str]], None]]:
    """Return a verb for each request, by its typed name."""
    return {name.replace("_", "-"): _verb(request) for name, request in kinds_of(Request).items()}


def call_flags(request: type[Request]) -> type[Any]:
    """Return the flags of a call's verb: the request, the run, the files to write."""
    own = (
        {"__annotations__": {"out": Path}, "out": Path(request.image_file)}
        if request.image_file
        else {}
    )
    bases = (
        *[JsonArgs] * request.has_json,
        *[ImageArgs] * bool(request.image_file),
        request,
        DeviceArgs,
        RunArgs,
    )
    return type("CallArgs", bases, own)


def _verb(request: type[Request]) -> Callable[[Sequence[str]], None]:
    def run(argv: Sequence[str]) -> None:
        values = dict(
            vars(
                parse(
                    call_flags(request),
                    argv,
                    f"eve {request.name.replace('_', '-')}",
                    request.about(),
                )
            )
        )
        image_file, json_file = (values.pop(name, None) for name in ("out", "json"))
        check_writable(image_file)
        if image_file is not None:
            _image_format(image_file)
        from eve_vl.eve import Eve

        result = getattr(Eve.load(values.pop("run"), values.pop("device")), request.name)(**values)
        shown = request.lines(result)
        if image_file is not None:
            _write_images(image_file, request.shown_images(result))
            shown = f"{image_file}: {shown}"
        print_line(*shown.split("\n"))
        if json_file is not None:
            write_json(json_file, request.values(result))

    run.__doc__ = request.about().split("\n")[0]
    return run


def run_encode(args: EncodeArgs) -> None:
    """Write features of images and texts to a file: eve encode RUN PATH … --out f.npz."""
    check_writable(args.out)
    if args.out.suffix.lower() not in FEATURE_FILES:
        raise UserError(
            f"{args.out}: cannot write features with the ending {args.out.suffix!r}; name it .npz or .safetensors"
        )
    given = {"image": args.images, "text": (*args.texts, *args.texts_of)}
    if not any(given.values()):
        raise UserError(
            "nothing to encode: name images, folders or tables, or texts with --texts, tables with --texts-of"
        )
    from eve_vl.eve import Eve
    from eve_vl.predict.inputs import is_source

    if DataConfig(**args.reading()) != DataConfig() and not (
        args.texts_of or any(map(is_source, args.images))
    ):
        raise UserError(
            "--format, --image-root and the columns have no effect without a folder or table; name one"
        )
    eve = Eve.load(args.run, args.device)
    options = args.reading() | {"batch_size": args.batch_size, "progress": True}
    found = {
        what: getattr(eve, f"encode_{what}")(items, **options)
        for what, items in given.items()
        if items
    }
    names = {f"{what}s": features.names for what, features in found.items()}
    if skipped := [str(error) for features in found.values() for error in features.skipped]:
        names["skipped"] = skipped
        print_line(*(f"skipped: {line}" for line in skipped))
    if not any(map(len, found.values())):
        fail(f"{args.out}: not written, because no row could be used", 1)
    _write_features(
        args.out, {f"{what}_features": features for what, features in found.items()}, names
    )
    print_line(
        f"{args.out}: "
        + ", ".join(f"{what}_features {features.shape}" for what, features in found.items())
    )
    if len(found) == 2 and not eve.task.is_comparable:
        print_line(
            "note: this run's features of images and of texts do not compare with each other"
        )
    if skipped:
        print_line(
            f"note: {len(skipped)} row{'s'[: len(skipped) - 1]} could not be used; the file lists what was `skipped`"
        )


def _write_features(
    path: Path, arrays: Mapping[str, "np.ndarray"], names: Mapping[str, Sequence[str]]
) -> None:
    """Write features and the names of their rows, in the format of the file's ending.

    Names are JSON, because an array of texts gives each the space of the longest.
    """
    import numpy as np
    import torch

    from eve_vl.train.tensor_files import write_tensors

    texts = {name: json.dumps(values) for name, values in names.items()}
    with atomic_file(path) as temporary:
        if path.suffix.lower() == ".safetensors":
            write_tensors(
                temporary,
                {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()},
                texts,
            )
            return
        everything: dict[str, Any] = {
            **arrays,
            **{name: np.array(text.encode()) for name, text in texts.items()},
        }
        with temporary.open("wb") as file:  # savez adds an ending to a path
            np.savez(file, **everything)


def _write_images(path: Path, images: Sequence["np.ndarray"]) -> None:
    """Write uint8 images side by side, in the format of the file's ending."""
    import numpy as np
    from PIL import Image

    factor = max(1, SHOWN_SIDE // max(max(image.shape[:2]) for image in images))
    enlarged = [image.repeat(factor, 0).repeat(factor, 1) for image in images]
    height = max(map(len, enlarged))
    framed = [
        np.pad(one, ((0, height - len(one)), (0, GAP), (0, 0)), constant_values=255)
        for one in enlarged
    ]
    with atomic_file(path) as temporary:
        Image.fromarray(np.hstack(framed)[:, :-GAP]).save(temporary, _image_format(path))


def _image_format(path: Path) -> str:
    """Return the format of an image file by its ending. Raises UserError."""
    from PIL import Image

    name = Image.registered_extensions().get(path.suffix.lower())
    if name not in Image.SAVE:
        raise UserError(
            f"{path}: cannot write images with the ending {path.suffix!r}; name it .png"
        )
    return name
