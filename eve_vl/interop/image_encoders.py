"""Image encoders as a start for pre-training.

These are BEiT, BEiT v2, timm's beit and vit, transformers' ViT, DeiT, BEiT and DINOv2.

| ours | comes from |
|---|---|
| patches, [CLS], positions, attention, LayerScale, norms of the image | the image encoder |
| image feed-forward networks | the image encoder |
| networks and norms of texts, experts | copies of the image encoder's, or random: `--copy` |
| text and type embeddings, router | random; `--architecture source`: types are 0 |

A ViT's key bias is left out: it adds a constant to all scores of a query, which softmax ignores.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from re import Match
from typing import Any

import torch
from torch import Tensor

from eve_vl.config import EveModelConfig, InputConfig
from eve_vl.config.plugins import installed, load_installed
from eve_vl.interop.checkpoint_shapes import (
    HEAD_WIDTH,
    count_numbered,
    patches_per_side,
    patches_per_side_of_table,
    width_and_patch_size,
)
from eve_vl.interop.convert import Conversion, Family
from eve_vl.interop.convert_args import ConvertArgs
from eve_vl.interop.eve_checkpoints import LAYERS
from eve_vl.interop.foreign_weights import checked_tensors, rename, renamed
from eve_vl.interop.weight_table import (
    Computed,
    WeightTable,
    concatenate,
    first_third,
    last_third,
    with_prefixes,
)
from eve_vl.utils.errors import UserError, nearest
from eve_vl.utils.frozen import Frozen

HEADS_OF_WIDE_ENCODERS = 16  # wider than 1024
DEEP_BLOCKS = 2
DEEP_BLOCKS_OF_LARGE = 3  # from 24 blocks
UNUSED = (
    r"head\.|head_dist\.|lm_head\.|mask_token|cls_pt_layers\.|pre_logits\.|dist_token|fc_norm\."
    r"|blocks\.\d+\.(norm2|mlp)\.|blocks\.\d+\.attn\.k\.bias"
)
RELATIVE = "relative_position"
PATCHES = "patch_embed.proj.weight"


def _norm_of_block(match: Match[str]) -> str:
    return ".norm1." if match[1] == "before" else ".norm2."


def _final_norm(match: Match[str]) -> str:
    return "fc_norm." if match[1] else "norm."


TIMM_NAMES: dict[str, str | Callable[[Match[str]], str]] = {
    r"^(vit|deit|beit|dinov2)\.": "",
    r"^embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
    r"^embeddings\.position_embeddings$": "pos_embed",
    r"^embeddings\.(cls|mask|dist)(illation)?_token$": r"\1_token",
    r"^(encoder\.layer|layers)\.": "blocks.",
    r"\.attention\.attention\.relative_position_bias\.": ".attn.",
    r"\.attention\.(attention\.)?([qkv])(uery|ey|alue|_proj)\.": r".attn.\2.",
    r"\.attention\.(output\.dense|o_proj)\.": ".attn.proj.",
    r"\.intermediate\.dense\.": ".mlp.fc1.",
    r"(?<=\d)\.output\.dense\.": ".mlp.fc2.",
    r"\.layernorm_(before|after)\.": _norm_of_block,
    r"\.(lambda_|layer_scale|ls)([12])(\.lambda1|\.gamma)?$": r".gamma_\2",
    r"^(pooler\.dense|(\w+_)?classifier)\.": "head.",
    r"^(pooler\.)?layernorm\.": _final_norm,
}
"""Patterns of transformers' names and their timm names."""
timm_name = partial(rename, rules=TIMM_NAMES)
BLOCK: dict[str, Sequence[str | float | Computed]] = {
    "norm1": ("norm1",),
    "norm2": ("norm2",),
    "attn.proj": ("attn.proj",),
    "attn.qkv.weight": (
        Computed(concatenate, ("attn.q.weight", "attn.k.weight", "attn.v.weight")),
        "attn.qkv.weight",
    ),
    "attn.q_bias": (
        "attn.q_bias",
        "attn.q.bias",
        Computed(first_third, ("attn.qkv.bias",)),
        0.0,
    ),
    "attn.v_bias": (
        "attn.v_bias",
        "attn.v.bias",
        Computed(last_third, ("attn.qkv.bias",)),
        0.0,
    ),
    "scale1": ("gamma_1", 1.0),
    "scale2": ("gamma_2", 1.0),
    "ffn.fc1": ("mlp.fc1",),
    "ffn.fc2": ("mlp.fc2",),
}
"""Possible sources of each tensor of a block: the first that the file has, else the last."""
RELATIVE_HINT = (
    ": its attention adds a relative position bias, which EVE's does not have (its authors "
    "started from BEiT v2 without it): "
    f"--drop {RELATIVE} leaves the bias out and learns positions again; an --architecture with "
    "relative positions keeps it"
)


class Architecture(Frozen):
    """The model that an image encoder is a start for, and how its positions enter.

    A related system registers one as an entry point of the group `eve_vl.architectures`.
    """

    model: EveModelConfig
    """Not yet of the encoder's sizes."""
    text_length: int = InputConfig.text_length
    """Tokens of the longest text."""
    default_copy: str = "all"
    """Default of --copy."""
    unused: str = ""
    """Pattern of more tensors to leave out."""

    def check_positions(
        self, tensors: Mapping[str, Tensor], side: int, args: ConvertArgs, where: str
    ) -> None:
        """Raise UserError for positions of another kind than the model has.

        side: patches per side as the positions tell, 0 without any.
        """
        if any(RELATIVE in name for name in tensors):
            raise UserError(where + RELATIVE_HINT)

    def position_table(self, depth: int) -> WeightTable:
        """Return the sources of positions other than those that are added to patches."""
        return {}


def is_image_encoder(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether tensors are those of an image encoder."""
    names = {timm_name(name) for name in tensors}
    has_attention = any(f"blocks.0.attn.{part}.weight" in names for part in ("qkv", "q"))
    return PATCHES in names and has_attention


def plan(tensors: dict[str, Tensor], where: str, args: ConvertArgs) -> Conversion:
    """Return what an encoder becomes: a start for pre-training. Raises UserError.

    --architecture: `eve` keeps EVE's blocks (quick-GELU, a norm before the first block), as its
    authors started from BEiT v2. `source` sets them to the source's, and features equal the
    source's. Others are the models of related systems' recipes.
    """
    tensors = renamed(tensors, timm_name, where)
    side = _patches_per_side(tensors, where)  # before --drop takes the positions away
    tensors = checked_tensors(tensors, args.drop, where)
    width, patch_size = width_and_patch_size(tensors[PATCHES], where)
    mlp_ratio = len(tensors["blocks.0.mlp.fc1.bias"]) / width
    image_size = side * patch_size or args.image_size
    if not image_size:
        raise UserError(
            f"{where}: has no positions, so the image size is unknown; give --image-size"
        )
    depth = count_numbered("blocks.*", tensors)
    architecture = _architecture(args, depth)
    architecture.check_positions(tensors, side, args, where)
    if not args.copy:
        args = replace(args, copy=architecture.default_copy)
    model = replace(
        architecture.model,
        embed_dim=width,
        depth=depth,
        num_heads=args.num_heads or _num_heads(width),
        mlp_ratio=mlp_ratio,
    )
    unused = "|".join(filter(None, (UNUSED, architecture.unused)))
    next_command = f"eve pretrain RECIPE --init {args.target}"
    return Conversion(
        tensors=tensors,
        sizes=InputConfig(
            image_size=image_size, patch_size=patch_size, text_length=architecture.text_length
        ),
        model=model,
        table={**key_table(tensors, model, args), **architecture.position_table(depth)},
        recipe_name="vision",
        unused=unused,
        is_partial=True,
        notes=f"; other tensors are random; next: {next_command}, which takes its shape",
    )


FLAGS = ("architecture", "copy", "num_experts", "num_deep_blocks")
IMAGE_ENCODERS = Family("an image encoder", FLAGS, is_image_encoder, plan)


def _num_heads(width: int) -> int:
    if width > 1024:
        return HEADS_OF_WIDE_ENCODERS
    return max(width // HEAD_WIDTH, 1)


def _patches_per_side(tensors: Mapping[str, Tensor], where: str) -> int:
    """Return the patches per side from positions; 0 without any."""
    if "pos_embed" in tensors:
        return patches_per_side(tensors["pos_embed"].shape[1:-1].numel(), where)
    tables = [tensor for name, tensor in tensors.items() if name.endswith(f"{RELATIVE}_bias_table")]
    if not tables:
        return 0
    return patches_per_side_of_table(tables[0].shape[:1].numel(), 3, where)


def _architecture(args: ConvertArgs, depth: int) -> Architecture:
    """Return the architecture that --architecture names. Raises UserError."""
    num_deep_blocks = args.num_deep_blocks
    if num_deep_blocks is None:
        num_deep_blocks = DEEP_BLOCKS_OF_LARGE if depth >= 24 else DEEP_BLOCKS
    if args.architecture in ("eve", "source"):
        num_experts = args.num_experts
        if num_experts is None:
            num_experts = EveModelConfig.num_experts
        model = EveModelConfig(
            num_deep_blocks=num_deep_blocks,
            num_experts=num_experts,
            top_k=min(EveModelConfig.top_k, num_experts),
        )
        if args.architecture == "source":
            model = replace(model, activation="gelu", norm_pre=False)
        return Architecture(model=model)
    architecture = load_installed("architectures", args.architecture)
    if architecture is None:
        names = ["eve", "source", *installed("architectures")]
        raise UserError(f"{args.source}: no --architecture {nearest(args.architecture, names)}")
    if args.num_experts is not None:
        problem = f"--num-experts has no effect with --architecture {args.architecture}"
        raise UserError(f"{args.source}: {problem}, without experts; leave it out")
    return replace(architecture, model=replace(architecture.model, num_deep_blocks=num_deep_blocks))


def key_table(
    tensors: Mapping[str, Tensor], model: EveModelConfig, args: ConvertArgs
) -> WeightTable:
    """Return the source of each of our tensors that comes from an image encoder."""
    table: dict[str, Any] = {
        "encoder.image.cls": Computed(torch.flatten, ("cls_token",)),
        "encoder.image.proj.weight": Computed(lambda weight: weight.flatten(1), (PATCHES,)),
        "encoder.image.proj.bias": "patch_embed.proj.bias",
        # fc_norm after a mean of the patches
        "encoder.norm": "norm" if "norm.weight" in tensors else "fc_norm",
    }
    if "pos_embed" in tensors:
        table["encoder.image.positions"] = Computed(
            lambda positions: positions.flatten(0, 1), ("pos_embed",)
        )
    if args.architecture == "source":
        table["encoder.image.type_embed"] = 0.0
    block = _block_table(tensors, model, args)
    return table | with_prefixes("encoder.blocks.*.", "blocks.*.", block)


def _block_table(
    tensors: Mapping[str, Tensor], model: EveModelConfig, args: ConvertArgs
) -> WeightTable:
    """Return the sources of a block, copies for other networks among them."""
    block: dict[str, Any] = {
        name: _first_present(sources, tensors) for name, sources in BLOCK.items()
    }
    copies = args.copy or "all"
    networks = ["image"]
    if copies in ("text", "all"):
        networks.append("text")
    if copies == "all":
        networks.append("vl")
    for network in networks:
        block[f"ffn.{network}"] = "mlp"
        block[f"ffn.norm_{network}"] = "norm2"
    if copies == "all":  # experts start out alike
        repeat = partial(repeated, model.num_experts)
        for layer in LAYERS:
            block[f"ffn.experts.{layer.replace('.', '_')}"] = Computed(repeat, (f"mlp.{layer}",))
    return block


def _first_present(
    sources: Sequence[str | float | Computed], tensors: Mapping[str, Tensor]
) -> str | float | Computed:
    """Return the first source whose tensors the first block has, else the last one."""
    for source in sources:
        name = source.sources[0] if isinstance(source, Computed) else source
        if f"blocks.0.{name}" in tensors:
            return source
    return sources[-1]


def repeated(num: int, tensor: Tensor) -> Tensor:
    """Return a stack of equal tensors."""
    return tensor.expand(num, *tensor.shape)
