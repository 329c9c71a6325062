"""How a CLIP or SigLIP prepares images, read from the files next to its weights.

Pixels are scaled in one step, (pixel × factor - mean) / std, which becomes one mean and one
deviation of pixels in [0, 1].
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eve_vl.interop.config_fields import read_section, read_value
from eve_vl.interop.pixel_scale import CLIP_MEAN, CLIP_STD
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import read_json, require_type

SIGLIP_MEAN_AND_STD = (0.5, 0.5, 0.5)
DEFAULT_SIDE = 224  # pixels, in transformers
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
PROCESSORS = re.compile(r"(CLIP|Siglip)(ImageProcessor(Fast|Pil)?|FeatureExtractor)")
READ_STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
OPEN_CLIP_RESIZING = {"squash": "squash", "shortest": "crop"}
OPEN_CLIP_INTERPOLATIONS = ("bicubic", "bilinear")


@dataclass(frozen=True)
class ImageSettings:
    """How images become pixels."""

    resize: str
    interpolation: str
    mean: tuple[float, ...]
    """Of pixels in [0, 1]."""
    std: tuple[float, ...]


def images_of_transformers(folder: Path, image_size: int, is_clip: bool) -> ImageSettings:
    """Return what transformers' image processor does. Raises UserError."""
    path, processor = _processor(folder)
    for name in ("image_processor_type", "feature_extractor_type"):
        kind = read_value(path, processor, name, str, "")
        match = PROCESSORS.fullmatch(kind)
        if match is not None:
            is_clip = match[1] == "CLIP"
        elif kind:
            raise UserError(
                f"{path}: {name} {kind} is not supported; only those of CLIP and SigLIP"
            )
    steps = {name for name, value in processor.items() if name.startswith("do_") and value}
    if steps - READ_STEPS:
        raise UserError(f"{path}: {', '.join(sorted(steps - READ_STEPS))} is not supported")

    factor = 1.0
    if read_value(path, processor, "do_rescale", bool, True):
        factor = read_value(path, processor, "rescale_factor", float, 1 / 255)
    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)
    if read_value(path, processor, "do_normalize", bool, True):
        mean = _channels(path, processor, "image_mean", CLIP_MEAN if is_clip else None)
        std = _channels(path, processor, "image_std", CLIP_STD if is_clip else None)
    if not factor > 0 or 0 in std:
        raise UserError(f"{path}: rescale_factor {factor} and image_std {list(std)} are not usable")
    scale = 255 * factor
    return ImageSettings(
        resize=_form_of_resizing(path, processor, image_size, is_clip),
        interpolation=RESAMPLING[read_value(path, processor, "resample", int, 3)],
        mean=tuple(value / scale for value in mean),
        std=tuple(value / scale for value in std),
    )


def _processor(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the file of transformers' image processor and its options; null means the default."""
    path = folder / "processor_config.json"
    processor: dict[str, Any] = {}
    if path.is_file():
        processor = read_section(path, read_json(path, dict), "image_processor")
    if not processor:
        path = folder / "preprocessor_config.json"
        if not path.is_file():
            raise UserError(
                f"{path}: no such file; save the model's image processor, which says how it scales "
                "pixels, next to the weights"
            )
        processor = read_json(path, dict)
    for name, value in processor.items():
        if name.startswith("do_") and value is None:  # versions of transformers differ
            raise UserError(f"{path}: {name} is null, expected true or false")
    return path, {name: value for name, value in processor.items() if value is not None}


def _form_of_resizing(
    path: Path, processor: Mapping[str, Any], image_size: int, is_clip: bool
) -> str:
    """Return whether images are squashed or cropped. Raises UserError for anything else."""
    resizes = read_value(path, processor, "do_resize", bool, True)
    crops = read_value(path, processor, "do_center_crop", bool, is_clip)
    default_square = {"height": DEFAULT_SIDE, "width": DEFAULT_SIDE}
    default_size = {"shortest_edge": DEFAULT_SIDE} if is_clip else default_square
    size = processor.get("size", default_size)
    crop_size = processor.get("crop_size", DEFAULT_SIDE)
    resample = processor.get("resample", 3)

    if isinstance(size, int):
        size = {"shortest_edge": size}
    square = {"height": image_size, "width": image_size}
    fits_crop = not crops or crop_size in (image_size, square)
    can_resize = resizes and fits_crop and resample in tuple(RESAMPLING)
    if can_resize and size == square:
        return "squash"
    if can_resize and crops and size == {"shortest_edge": image_size}:
        return "crop"
    raise UserError(
        f"{path}: has resample {resample} and size {size}, do_resize {resizes}, do_center_crop "
        f"{crops}, crop_size {crop_size}; only resample 2 (bilinear) or 3 (bicubic), and size "
        f"{image_size}, cropped if it is a shortest_edge, can be read"
    )


def images_of_open_clip(path: Path, config: Mapping[str, Any], image_size: int) -> ImageSettings:
    """Return what open_clip's preprocessing does. Raises UserError."""
    section = read_section(path, config, "preprocess_cfg")
    options = {name: value for name, value in section.items() if value is not None}
    resize = read_value(path, options, "resize_mode", str, "shortest")
    interpolation = read_value(path, options, "interpolation", str, "bicubic")
    size = options.get("size", image_size)
    mode = options.get("mode", "RGB")
    is_readable = resize in OPEN_CLIP_RESIZING and interpolation in OPEN_CLIP_INTERPOLATIONS
    if not is_readable or size not in (image_size, [image_size] * 2) or mode != "RGB":
        raise UserError(
            f"{path}: preprocess_cfg with resize_mode {resize}, interpolation {interpolation}, "
            f"size {size} and mode {mode} is not supported"
        )
    std = _channels(path, options, "std", CLIP_STD)
    if 0 in std:
        raise UserError(f"{path}: std {list(std)} holds 0")
    return ImageSettings(
        resize=OPEN_CLIP_RESIZING[resize],
        interpolation=interpolation,
        mean=_channels(path, options, "mean", CLIP_MEAN),
        std=std,
    )


def _channels(
    path: Path, options: Mapping[str, Any], name: str, default: tuple[float, ...] | None
) -> tuple[float, ...]:
    """Return three numbers, by default SigLIP's. Raises UserError for anything else."""
    values = options.get(name, list(default or SIGLIP_MEAN_AND_STD))
    is_usable = isinstance(values, list) and len(values) == 3
    for value in values if is_usable else ():
        try:
            is_usable = is_usable and abs(require_type(value, float)) < float("inf")
        except ValueError:
            is_usable = False
    if not is_usable:
        raise UserError(f"{path}: {name} is {values!r}, expected three finite numbers")
    return tuple(values)
