"""What the configs next to a CLIP or SigLIP checkpoint say: heads, activation, sizes.

What they say of images is read in clip_images.py.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from eve_vl.interop.checkpoint_shapes import HEAD_WIDTH
from eve_vl.interop.clip_images import (
    ImageSettings,
    images_of_open_clip,
    images_of_transformers,
)
from eve_vl.interop.config_fields import read_section, read_side, read_value
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import read_json

OPEN_CLIP = "open_clip_config.json"
TRANSFORMERS_KINDS = ("clip", "siglip", "siglip2")  # of transformers' models
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
HEADS_OF_WIDE_SIGLIP = 16  # of timm's SigLIP encoders wider than 1024
DEFAULT_DEPTH = 12  # of both towers, in transformers and open_clip
DEFAULT_END = 49407  # CLIP's, in transformers
HIGHEST = 2  # as end_id: the highest id of a text
READABLE_OPTIONS = {
    "embed_dim",
    "vision_cfg",
    "text_cfg",
    "quick_gelu",
    "custom_text",
    "init_logit_bias",
    "init_logit_scale",
    "image_size",
    "layers",
    "width",
    "head_width",
    "mlp_ratio",
    "patch_size",
    "timm_model_name",
    "timm_model_pretrained",
    "timm_pool",
    "timm_proj",
    "context_length",
    "vocab_size",
    "hf_tokenizer_name",
    "tokenizer_kwargs",
    "heads",
    "no_causal_mask",
    "proj_bias",
    "pool_type",
    "norm_kwargs",
    "act_kwargs",
}
"""Options of open_clip that need nothing besides tensors and what is read here."""
CLIP_OPTIONS: dict[str, dict[str, Any]] = {
    "vision_cfg": {
        "pool_type": ("tok", None),
        "norm_kwargs": (None, {}),
        "act_kwargs": (None, {}),
        "no_causal_mask": (None,),
    },
    "text_cfg": {
        "pool_type": ("argmax", None),
        "no_causal_mask": (False, None),
        "proj_bias": (False, None),
        "norm_kwargs": (None, {}),
        "act_kwargs": (None, {}),
        "tokenizer_kwargs": (None, {}),
    },
}
SIGLIP_OPTIONS: dict[str, dict[str, Any]] = {
    "model_cfg": {"quick_gelu": (False, None)},
    "vision_cfg": {"timm_pool": ("map",), "timm_proj": ("none", "", None)},
    "text_cfg": {
        "pool_type": ("last",),
        "no_causal_mask": (True,),
        "proj_bias": (True,),
        "norm_kwargs": ({"eps": 1e-6},),
        "act_kwargs": ({"approximate": "tanh"}, None),
        "tokenizer_kwargs": ({"clean": "canonicalize"},),
    },
}
"""Values that open_clip's options must have, by section."""


@dataclass(frozen=True)
class StatedSize:
    """A size that a config states, which the weights must have."""

    field: str
    """In the config, with its section."""
    size: str
    """Its name in `clip.sizes_of`."""
    value: int


@dataclass(frozen=True)
class ClipSettings:
    """What a model's tensors do not say."""

    path: Path
    """The config."""
    towers: Literal["clip", "siglip"]
    activation: str
    num_heads: int
    text_num_heads: int
    images: ImageSettings
    end_id: int
    """Token whose state represents a text, HIGHEST: that of the highest id; of CLIP."""
    stated_sizes: Sequence[StatedSize] = field(default_factory=tuple)
    strips_punctuation: bool = False
    """Whether texts lose punctuation, with any tokenizer."""
    notes: str = ""

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


# transformers


TOWER_SIZES = {
    "hidden_size": "width",
    "intermediate_size": "hidden width",
    "num_hidden_layers": "layers",
}
VISION_SIZES = TOWER_SIZES | {"num_channels": "channels", "patch_size": "patch size"}
TEXT_SIZES = TOWER_SIZES | {"max_position_embeddings": "positions", "vocab_size": "tokens"}


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
    vision = _tower(config, "vision", path)
    text = _tower(config, "text", path)
    if not read_value(path, vision, "vision_use_head", bool, True):
        raise UserError(f"{path}: vision_use_head false, without pooling, is not supported")

    image_size = read_side(path, vision, "image_size", 224)
    sizes = _stated_sizes(path, "vision_config", vision, VISION_SIZES)
    sizes += _stated_sizes(path, "text_config", text, TEXT_SIZES)
    sizes.append(StatedSize("vision_config.image_size", "vision image size", image_size))
    if is_clip:
        features = read_value(path, config, "projection_dim", int, 512)
        sizes.append(StatedSize("projection_dim", "features", features))
    elif text.get("projection_size") is not None:
        features = read_value(path, text, "projection_size", int)
        sizes.append(StatedSize("text_config.projection_size", "features", features))
    return ClipSettings(
        path=path,
        towers="clip" if is_clip else "siglip",
        activation=_activation(path, vision, text, is_clip),
        num_heads=_num_heads(path, vision, "num_attention_heads", 12),
        text_num_heads=_num_heads(path, text, "num_attention_heads", 8 if is_clip else 12),
        images=images_of_transformers(folder, image_size, is_clip),
        end_id=read_value(path, text, "eos_token_id", int, DEFAULT_END) if is_clip else 0,
        stated_sizes=sizes,
    )


def _tower(config: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    """Return the config of a tower; an older form of it comes first, as in transformers."""
    older = config.get(f"{name}_config_dict")
    if older is not None:
        return read_section(path, config, f"{name}_config_dict")
    return read_section(path, config, f"{name}_config")


def _stated_sizes(
    path: Path, section: str, values: Mapping[str, Any], names: Mapping[str, str]
) -> list[StatedSize]:
    """Return the sizes that a section states; for the number of layers also the default."""
    tower = "text" if section.startswith("text") else "vision"
    stated = []
    for name, size in names.items():
        value = read_side(path, values, name, DEFAULT_DEPTH if size == "layers" else 0)
        if name in values or size == "layers":
            stated.append(StatedSize(f"{section}.{name}", f"{tower} {size}", value))
    return stated


def _num_heads(path: Path, tower: Mapping[str, Any], name: str, default: int) -> int:
    """Return the number of attention heads of a tower. Raises UserError below 1."""
    num_heads = read_value(path, tower, name, int, default)
    if num_heads < 1:
        raise UserError(f"{path}: {name} is {num_heads}, expected 1 or more")
    return num_heads


def _activation(
    path: Path, vision: Mapping[str, Any], text: Mapping[str, Any], is_clip: bool
) -> str:
    """Return the activation of both towers. Raises UserError for other ones or another epsilon."""
    default = "quick_gelu" if is_clip else "gelu_pytorch_tanh"
    eps = 1e-5 if is_clip else 1e-6
    variants = set()
    for tower in (vision, text):
        activation = read_value(path, tower, "hidden_act", str, default)
        variants.add((activation, read_value(path, tower, "layer_norm_eps", float, eps)))
    name = min(variants)[0]
    if variants != {(name, eps)} or name not in ACTIVATIONS:
        raise UserError(
            f"{path}: towers with hidden_act and layer_norm_eps {sorted(variants)} are not "
            "supported"
        )
    return ACTIVATIONS[name]


# open_clip


OPEN_CLIP_TOWER_SIZES = {"width": "width", "layers": "layers"}
OPEN_CLIP_VISION_SIZES = OPEN_CLIP_TOWER_SIZES | {"patch_size": "patch size"}
OPEN_CLIP_TEXT_SIZES = OPEN_CLIP_TOWER_SIZES | {
    "context_length": "positions",
    "vocab_size": "tokens",
}


def _settings_of_open_clip(folder: Path) -> ClipSettings:
    """Return what open_clip's file says. Raises UserError."""
    path = folder / OPEN_CLIP
    config = read_json(path, dict)
    model = read_section(path, config, "model_cfg")
    vision = read_section(path, model, "vision_cfg")
    text = read_section(path, model, "text_cfg")
    is_siglip = "timm_model_name" in vision
    sections = {"model_cfg": model, "vision_cfg": vision, "text_cfg": text}
    _refuse_options(path, sections, SIGLIP_OPTIONS if is_siglip else CLIP_OPTIONS)

    image_size = read_side(path, vision, "image_size", 224)
    features = read_value(path, model, "embed_dim", int)
    sizes = _stated_sizes(path, "text_cfg", text, OPEN_CLIP_TEXT_SIZES)
    sizes += _stated_mlp("text_cfg", path, text, 512)
    sizes.append(StatedSize("vision_cfg.image_size", "vision image size", image_size))
    sizes.append(StatedSize("embed_dim", "features", features))
    notes = ""
    if is_siglip:
        name = read_value(path, vision, "timm_model_name", str)
        if not re.fullmatch(r"vit_\w+_siglip_\d+", name):
            raise UserError(f"{path}: timm_model_name {name} is not supported; take a vit_…_siglip")
        activation = "gelu_tanh"
        num_heads = HEADS_OF_WIDE_SIGLIP if features > 1024 else features // HEAD_WIDTH
        notes = "; GELU by tanh, as trained and in transformers"
    else:
        sizes += _stated_sizes(path, "vision_cfg", vision, OPEN_CLIP_VISION_SIZES)
        sizes += _stated_mlp("vision_cfg", path, vision, 768)
        quick = read_value(path, model, "quick_gelu", bool, False)
        activation = "quick_gelu" if quick else "gelu"
        width = read_value(path, vision, "width", int, 768)
        head_width = read_value(path, vision, "head_width", int, HEAD_WIDTH)
        num_heads = width // max(head_width, 1)
    return ClipSettings(
        path=path,
        towers="siglip" if is_siglip else "clip",
        activation=activation,
        num_heads=num_heads,
        text_num_heads=_num_heads(path, text, "heads", 8),
        images=images_of_open_clip(path, config, image_size),
        end_id=HIGHEST,
        stated_sizes=sizes,
        strips_punctuation=is_siglip,
        notes=notes,
    )


def _stated_mlp(
    section: str, path: Path, values: Mapping[str, Any], default_width: int
) -> list[StatedSize]:
    """Return the width of hidden layers that a section of open_clip states."""
    width = read_value(path, values, "width", int, default_width)
    hidden = int(width * read_value(path, values, "mlp_ratio", float, 4.0))
    tower = "text" if section.startswith("text") else "vision"
    return [StatedSize(f"{section}.width × mlp_ratio", f"{tower} hidden width", hidden)]


def _refuse_options(
    path: Path,
    sections: Mapping[str, Mapping[str, Any]],
    required: Mapping[str, Mapping[str, Sequence[Any]]],
) -> None:
    """Raise UserError for options of open_clip that are not read here, or their values."""
    names = {name for section in sections.values() for name, value in section.items() if value}
    unreadable = names - READABLE_OPTIONS
    if unreadable:
        raise UserError(f"{path}: {', '.join(sorted(unreadable))} of open_clip is not supported")
    for section, options in required.items():
        for name, supported in options.items():
            value = sections[section].get(name)
            if value not in supported:
                raise UserError(
                    f"{path}: {section}.{name} {value!r} of open_clip is not supported; only "
                    f"{supported[0]!r} is"
                )
