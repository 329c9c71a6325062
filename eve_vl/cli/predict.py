"""Verbs that use a run on images and texts at hand: encode, and one for each call that tasks offer."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from eve_vl.cli.common import DeviceArgs, SourceArgs, check_writable, fail, parse, print_line, with_own, write_json
from eve_vl.config import DataConfig, TaskConfig, kinds_of
from eve_vl.config.tasks import ANY
from eve_vl.utils.atomic_io import atomic_file, write_file
from eve_vl.utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np

SHOWN_SIDE = 224  # pixels; smaller images are written enlarged by a whole number, so that people see something
GAP = 8
FEATURE_FILES = (".npz", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class EncodeArgs(SourceArgs, DeviceArgs):
    """Flags of `eve encode`."""

    images: Positional[tuple[str, ...]] = ()
    """Image files, folders of images, tables or shards."""
    texts: tuple[str, ...] = ()
    """Texts."""
    texts_of: tuple[Path, ...] = ()
    """Files of texts or tables whose texts to encode."""
    out: Path = Path("features.npz")
    """File to write, .npz or .safetensors: image_features and text_features, and as JSON lists, of as many rows their names,
    images and texts, and skipped rows (in a .npz file each an array of one JSON text, in a .safetensors file its metadata)."""
    batch_size: int = 64
    """How many to compute at a time."""


def call_verbs() -> dict[str, Callable[[Sequence[str]], None]]:
    """Return a verb for each call that tasks offer, by what is typed."""
    calls = {call: words for kind in kinds_of(TaskConfig).values() for call, words in kind.calls.items()} | {**ANY}
    return {call.replace("_", "-"): _verb(call, words) for call, words in calls.items()}


def _verb(call: str, words: str) -> Callable[[Sequence[str]], None]:
    def run(argv: Sequence[str]) -> None:
        from eve_vl.eve import Eve
        from eve_vl.predict.base import predictor_class

        kinds = [predictor_class(kind) for kind in kinds_of(TaskConfig).values()]
        verb = next(kind.verbs[call] for kind in kinds if call in kind.verbs)
        args = parse(with_own(DeviceArgs, verb.flags), argv, f"eve {call.replace('_', '-')}", words)
        values = dict(vars(args))
        files = {name: values.pop(name) for name in ("out", "json") if name in values}
        check_writable(*files.values())
        if "out" in files:
            _image_format(files["out"])
        result = getattr(Eve.load(values.pop("run"), values.pop("device")), call)(**values)
        shown = verb.show(result)
        if verb.images is not None:
            _write_images(files["out"], verb.images(result))
            shown = f"{files['out']}: {shown}"
        print_line(shown)
        write_json(files.get("json"), verb.values(result))

    run.__doc__ = words
    return run


def run_encode(args: EncodeArgs) -> None:
    """Write features of images and texts to a file: eve encode RUN FOLDER|TABLE|IMAGE … --texts "TEXT" … --out f.npz."""
    check_writable(args.out)
    if args.out.suffix.lower() not in FEATURE_FILES:
        raise UserError(f"{args.out}: cannot write features with the ending {args.out.suffix!r}; name it .npz or .safetensors")
    given = {"image": args.images, "text": (*args.texts, *args.texts_of)}
    if not any(given.values()):
        raise UserError("nothing to encode: name images, folders or tables, or texts with --texts, tables with --texts-of")
    from eve_vl.eve import Eve
    from eve_vl.predict.inputs import is_source

    if DataConfig(**args.reading()) != DataConfig() and not (args.texts_of or any(map(is_source, args.images))):
        raise UserError("--format, --image-root and the columns say how to read folders and tables; name one")
    eve = Eve.load(args.run, args.device)
    options = args.reading() | {"batch_size": args.batch_size, "progress": True}
    found = {what: getattr(eve, f"encode_{what}")(items, **options) for what, items in given.items() if items}
    names = {f"{what}s": features.names for what, features in found.items()}
    if skipped := [str(error) for features in found.values() for error in features.skipped]:
        names["skipped"] = skipped
        print_line("\n".join(f"skipped: {line}" for line in skipped))
    if not any(map(len, found.values())):
        fail(f"{args.out}: not written, for no row could be used", 1)
    _write_features(args.out, {f"{what}_features": features for what, features in found.items()}, names)
    print_line(f"{args.out}: " + ", ".join(f"{what}_features {features.shape}" for what, features in found.items()))
    if len(found) == 2 and not eve.task.is_comparable:
        print_line("note: features of images and of texts of this run do not compare with each other")
    if skipped:
        print_line(f"note: {len(skipped)} row{'s'[: len(skipped) - 1]} could not be used; the file lists what was `skipped`")


def _write_features(path: Path, arrays: Mapping[str, "np.ndarray"], names: Mapping[str, Sequence[str]]) -> None:
    """Write features and what they are of, in the format of the file's name. Names are JSON, as in an array each would take
    the room of the longest."""
    import numpy as np
    import torch

    from eve_vl.train.checkpoint import write_tensors

    texts = {name: json.dumps(values) for name, values in names.items()}
    with atomic_file(path) as temporary:
        if path.suffix.lower() == ".safetensors":
            write_tensors(temporary, {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}, texts)
            return
        everything: dict[str, Any] = {**arrays, **{name: np.array(text.encode()) for name, text in texts.items()}}
        with temporary.open("wb") as file:  # to a name, savez would add its ending
            np.savez(file, **everything)


def _write_images(path: Path, images: Sequence["np.ndarray"]) -> None:
    """Write uint8 images side by side, in the format of the file's name."""
    import numpy as np
    from PIL import Image

    factor = max(1, SHOWN_SIDE // max(max(image.shape[:2]) for image in images))
    enlarged = [image.repeat(factor, 0).repeat(factor, 1) for image in images]
    height = max(map(len, enlarged))
    framed = [np.pad(one, ((0, height - len(one)), (0, GAP), (0, 0)), constant_values=255) for one in enlarged]
    file = io.BytesIO()
    Image.fromarray(np.hstack(framed)[:, :-GAP]).save(file, _image_format(path))
    write_file(path, file.getvalue())


def _image_format(path: Path) -> str:
    """Return the format of an image file to write. Raises UserError for an unknown one."""
    from PIL import Image

    name = Image.registered_extensions().get(path.suffix.lower())
    if name not in Image.SAVE:
        raise UserError(f"{path}: cannot write images with the ending {path.suffix!r}; name it .png")
    return name
