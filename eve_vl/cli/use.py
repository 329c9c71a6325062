"""Verbs that use a run on pictures and texts at hand: encode, and one for each call that tasks offer."""

import dataclasses
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from eve_vl.cli.common import RunArgs, check_writable, parse, say, write_json
from eve_vl.config import TaskConfig, kinds_of
from eve_vl.errors import UserError
from eve_vl.files import write_file

if TYPE_CHECKING:
    import numpy as np

SHOWN_SIDE = 224  # pixels; smaller pictures are written enlarged by a whole number, so that people see something
GAP = 8
LOOK = {
    "look": 'Show where in a picture the answer comes from (Grad-CAM): eve look RUN IMAGE "TEXT" --word star --out heat.png.'
}


@dataclass(frozen=True, kw_only=True)
class EncodeArgs(RunArgs):
    """Flags of `eve encode`."""

    images: Positional[tuple[Path, ...]] = ()
    """Picture files."""
    texts: tuple[str, ...] = ()
    """Texts."""
    out: Path = Path("features.npz")
    """File to write: images and texts, and image_features and text_features of as many rows."""
    batch_size: int = 64
    """How many to compute at a time."""


def call_verbs() -> dict[str, Callable[[Sequence[str]], None]]:
    """Return a verb for each call that tasks offer, by what is typed."""
    calls = {call: words for kind in kinds_of(TaskConfig).values() for call, words in kind.calls.items()} | LOOK
    return {call.replace("_", "-"): _verb(call, words) for call, words in calls.items()}


def _verb(call: str, words: str) -> Callable[[Sequence[str]], None]:
    def run(argv: Sequence[str]) -> None:
        from eve_vl.eve import Eve
        from eve_vl.tasks import task_class

        kinds = [task_class(kind).calls for kind in kinds_of(TaskConfig).values()]
        verb = next(kind.verbs[call] for kind in kinds if call in kind.verbs)
        args = parse(call_args(verb.flags), argv, f"eve {call.replace('_', '-')}", words)
        values = {field.name: getattr(args, field.name) for field in dataclasses.fields(args)}
        files = {name: values.pop(name) for name in ("out", "json") if name in values}
        check_writable(*files.values())
        if "out" in files:
            _picture_format(files["out"])
        result = getattr(Eve.load(values.pop("run")), call)(**values)
        shown = verb.show(result)
        if verb.pictures is not None:
            _write_pictures(files["out"], verb.pictures(result))
            shown = f"{files['out']}: {shown}"
        say(shown)
        write_json(files.get("json"), verb.values(result))

    run.__doc__ = words
    return run


def call_args(flags: type) -> type:
    """Return the flags of a call's verb: the run, then its own."""
    return dataclasses.make_dataclass(flags.__name__, [], bases=(flags, RunArgs), frozen=True, kw_only=True)


def run_encode(argv: Sequence[str]) -> None:
    """Write features of pictures and texts to a NumPy file: eve encode RUN PATH … --texts "TEXT" … --out features.npz."""
    args = parse(EncodeArgs, argv, "eve encode", run_encode.__doc__)
    check_writable(args.out)
    if not args.images and not args.texts:
        raise UserError("nothing to encode: name picture files, or texts with --texts")
    import numpy as np

    from eve_vl.eve import Eve

    eve, arrays = Eve.load(args.run), {}
    if args.images:
        arrays |= {"images": np.array(list(map(str, args.images)))}
        arrays |= {"image_features": eve.encode_image(args.images, args.batch_size)}
    if args.texts:
        arrays |= {"texts": np.array(args.texts), "text_features": eve.encode_text(args.texts, args.batch_size)}
    file = io.BytesIO()
    np.savez(file, **arrays)
    write_file(args.out, file.getvalue())
    say(f"{args.out}: " + ", ".join(f"{name} {array.shape}" for name, array in arrays.items() if "features" in name))


def _write_pictures(path: Path, pictures: Sequence["np.ndarray"]) -> None:
    """Write uint8 pictures side by side, in the format of the file's name."""
    import numpy as np
    from PIL import Image

    factor = max(1, SHOWN_SIDE // max(max(picture.shape[:2]) for picture in pictures))
    enlarged = [picture.repeat(factor, 0).repeat(factor, 1) for picture in pictures]
    height = max(map(len, enlarged))
    framed = [np.pad(one, ((0, height - len(one)), (0, GAP), (0, 0)), constant_values=255) for one in enlarged]
    file = io.BytesIO()
    Image.fromarray(np.hstack(framed)[:, :-GAP]).save(file, _picture_format(path))
    write_file(path, file.getvalue())


def _picture_format(path: Path) -> str:
    """Return the format of a picture file to write. Raises UserError for an unknown one."""
    from PIL import Image

    name = Image.registered_extensions().get(path.suffix.lower())
    if name not in Image.SAVE:
        raise UserError(f"{path}: cannot write pictures with the ending {path.suffix!r}; name it .png")
    return name
