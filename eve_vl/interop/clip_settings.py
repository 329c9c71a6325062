"""What the files next to a CLIP or SigLIP checkpoint say: heads, activation, resizing, pixel
statistics."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eve_vl.interop.checkpoint_shapes import HEAD_WIDTH
from eve_vl.interop.pixel_scale import CLIP_MEAN, CLIP_STD
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import read_json

OPEN_CLIP = "open_clip_config.json"
TRANSFORMERS_KINDS = ("clip", "siglip", "siglip2")  # of transformers' models
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
OPEN_CLIP_RESIZING = {"squash": "squash", "shortest": "crop"}
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
HEADS_OF_WIDE_SIGLIP = 16  # of timm's SigLIP encoders wider than 1024
SIGLIP_MEAN_AND_STD = (0.5, 0.5, 0.5)
READABLE_OPTIONS = re.compile(
    "embed_dim|vision_cfg|text_cfg|quick_gelu|custom_text|init_logit_bias|init_logit_scale|image_size|layers|width|head_width|"
    "mlp_ratio|patch_size|timm_model_name|timm_model_pretrained|timm_pool|timm_proj|context_length|vocab_size|"
    "hf_tokenizer_name|tokenizer_kwargs|heads|no_causal_mask|proj_bias|pool_type|norm_kwargs|act_kwargs"
)
"""Options of open_clip that need nothing besides tensors and what is read here."""


@dataclass(frozen=True)
class ClipSettings:
    """What a model's tensors do not say."""

    towers: Literal["clip", "siglip"]
    activation: str
    num_heads: int
    text_num_heads: int
    resize: str
    interpolation: str
    mean: tuple[float, ...]
    """Of pixels in [0, 1]."""
    std: tuple[float, ...]
    strips_punctuation: bool = False
    """Whether texts lose punctuation, with any tokenizer."""

    @property
    def is_siglip(self) -> bool:
        """Whether this is a SigLIP and not a CLIP."""
        return self.towers == "siglip"


def is_published(folder: Path) -> bool:
    """Return whether a folder is one of transformers or open_clip."""
    return (folder / OPEN_CLIP).is_file() or _is_of_transformers(folder)


def read_settings(folder: Path) -> ClipSettings:
    """Return what the files of a folder say. Raises UserError."""
    if (folder / OPEN_CLIP).is_file() and not _is_of_transformers(folder):
        return _settings_of_open_clip(folder)
    return _settings_of_transformers(folder)


def _is_of_transformers(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and read_json(config, dict).get("model_type") in TRANSFORMERS_KINDS


def _settings_of_transformers(folder: Path) -> ClipSettings:
    """Return what transformers' files say. Raises UserError."""
    path = folder / "config.json"
    config = read_json(path, dict)
    kind = config.get("model_type")
    if kind == "siglip2":
        raise UserError(
            f"{path}: SigLIP 2 with images of any aspect ratio (NaFlex) is not supported; take a "
            "fixed resolution"
        )
    if kind not in ("clip", "siglip"):
        raise UserError(
            f"{path}: is a {kind} model; CLIP, SigLIP and SigLIP 2 of fixed resolution can be read"
        )
    is_clip = kind == "clip"
    eps = 1e-5 if is_clip else 1e-6
    defaults = {
        "hidden_act": "quick_gelu" if is_clip else "gelu_pytorch_tanh",
        "layer_norm_eps": eps,
        "image_size": 224,
    }
    image_tower = _tower(config, "vision", defaults | {"num_attention_heads": 12})
    text_tower = _tower(config, "text", defaults | {"num_attention_heads": 8 if is_clip else 12})
    activation = image_tower["hidden_act"]
    variants = {
        (tower["hidden_act"], tower["layer_norm_eps"]) for tower in (image_tower, text_tower)
    }
    if variants != {(activation, eps)} or activation not in ACTIVATIONS:
        raise UserError(
            f"{path}: towers with hidden_act and layer_norm_eps {sorted(variants)} are not "
            "supported"
        )
    resize, interpolation, processor = _resizing(folder, image_tower["image_size"], is_clip)
    mean = CLIP_MEAN if is_clip else SIGLIP_MEAN_AND_STD
    std = CLIP_STD if is_clip else SIGLIP_MEAN_AND_STD
    return ClipSettings(
        towers=kind,
        activation=ACTIVATIONS[activation],
        num_heads=image_tower["num_attention_heads"],
        text_num_heads=text_tower["num_attention_heads"],
        resize=resize,
        interpolation=interpolation,
        mean=tuple(processor.get("image_mean", mean)),
        std=tuple(processor.get("image_std", std)),
    )


def _tower(config: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a tower with transformers' defaults."""
    values = config.get(f"{name}_config", {})
    older_values = config.get(f"{name}_config_dict") or {}
    return {**defaults, **values, **older_values}


def _resizing(folder: Path, image_size: int, is_clip: bool) -> tuple[str, str, dict[str, Any]]:
    """Return the form and interpolation of resizing, and all options of transformers' image
    processor.

    Raises UserError.
    """
    names = ("preprocessor_config.json", "processor_config.json")
    paths = [folder / name for name in names if (folder / name).is_file()]
    processor: dict[str, Any] = read_json(paths[0], dict) if paths else {}
    processor = processor.get("image_processor", processor)
    size = processor.get("size", {"shortest_edge": image_size} if is_clip else {})
    resample = processor.get("resample", 3)
    sides = {size} if isinstance(size, int) else {*size.values()}
    if resample not in RESAMPLING or not sides <= {image_size}:
        readable = f"2 (bilinear) or 3 (bicubic), and size {image_size}"
        raise UserError(
            f"{paths[0]}: has resample {resample} and size {size}; only resample {readable} can "
            "be read"
        )
    crops = isinstance(size, int) or "shortest_edge" in size
    return "crop" if crops else "squash", RESAMPLING[resample], processor


def _settings_of_open_clip(folder: Path) -> ClipSettings:
    """Return what open_clip's file says. Raises UserError."""
    path = folder / OPEN_CLIP
    config = read_json(path, dict)
    model = config["model_cfg"]
    images = config.get("preprocess_cfg", {})
    image_tower = model["vision_cfg"]
    text_tower = model["text_cfg"]
    _refuse_unreadable_options(path, (model, image_tower, text_tower))
    is_siglip = "timm_model_name" in image_tower
    pool_type = text_tower.get("pool_type", "argmax")
    resize = images.get("resize_mode", "shortest")
    if pool_type != ("last" if is_siglip else "argmax") or resize not in OPEN_CLIP_RESIZING:
        raise UserError(f"{path}: pool_type {pool_type} with resize_mode {resize} is not supported")
    if is_siglip:
        activation = "gelu_tanh"
        width = model["embed_dim"]
        num_heads = HEADS_OF_WIDE_SIGLIP if width > 1024 else width // HEAD_WIDTH
    else:
        activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
        num_heads = image_tower["width"] // image_tower.get("head_width", HEAD_WIDTH)
    return ClipSettings(
        towers="siglip" if is_siglip else "clip",
        activation=activation,
        num_heads=num_heads,
        text_num_heads=text_tower["heads"],
        resize=OPEN_CLIP_RESIZING[resize],
        interpolation=images.get("interpolation", "bicubic"),
        mean=tuple(images.get("mean", CLIP_MEAN)),
        std=tuple(images.get("std", CLIP_STD)),
        strips_punctuation=text_tower.get("tokenizer_kwargs", {}).get("clean") == "canonicalize",
    )


def _refuse_unreadable_options(path: Path, sections: Sequence[Mapping[str, Any]]) -> None:
    """Raise UserError for options of open_clip that change the model in a way that is not read
    here."""
    names = {name for section in sections for name, value in section.items() if value}
    unreadable = sorted(name for name in names if not READABLE_OPTIONS.fullmatch(name))
    if unreadable:
        raise UserError(f"{path}: {', '.join(unreadable)} of open_clip is not supported")
