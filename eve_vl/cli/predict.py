"""Verbs that apply a run to images and texts, one for each call."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eve_vl.cli.common import (
    DeviceArgs,
    JsonArgs,
    RunArgs,
    check_writable,
    parse,
    print_line,
    write_json,
)
from eve_vl.predict.requests import Request, known_requests
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import atomic_file
from eve_vl.utils.frozen import Frozen

if TYPE_CHECKING:
    import numpy as np

SHOWN_SIDE = 224  # pixels; smaller images are enlarged by a whole number before they are written
GAP = 8


class ImageArgs(Frozen):
    """Flag of calls whose result is an image."""

    out: Path = Path("image.png")
    """Image to write."""


def call_verbs() -> dict[str, Callable[[Sequence[str]], None]]:
    """Return a verb for each request, by its typed name."""
    return {name.replace("_", "-"): _verb(request) for name, request in known_requests().items()}


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
