"""Image encoders as a start for pre-training.

These are BEiT, BEiT v2, timm's beit and vit, transformers' ViT, DeiT, BEiT and DINOv2.

| ours | comes from |
|---|---|
| patch projection, [CLS], positions, attention, LayerScale, norms of the image, final norm | the image encoder |
| image feed-forward networks | the image encoder |
| text feed-forward networks and norms, experts | copies of the image encoder's (sparse upcycling), or random: `--copy` |
| text embeddings, type embeddings, router | random; with `--architecture source` type embeddings are 0 |

A ViT's key bias is left out: it adds a constant to all scores of a query, which softmax ignores.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from eve_vl.config import EveModelConfig, InputConfig
from eve_vl.config.plugins import installed, load_installed
from eve_vl.interop import ConvertArgs, convert
from eve_vl.interop.convert import Family, Made, Plan, Table, under
from eve_vl.interop.published import PARTS
from eve_vl.utils.errors import UserError, nearest

WIDE = 16  # heads of the image encoders that are wider than 1024
UNUSED = (
    r"head\.|head_dist\.|lm_head\.|mask_token|cls_pt_layers\.|pre_logits\.|dist_token|fc_norm\."
    r"|blocks\.\d+\.(norm2|mlp)\.|blocks\.\d+\.attn\.k\.bias"
)
RELATIVE = "relative_position"
TRANSFORMERS = {
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
    r"\.layernorm_(before|after)\.": lambda found: ".norm1." if found[1] == "before" else ".norm2.",
    r"\.(lambda_|layer_scale|ls)([12])(\.lambda1|\.gamma)?$": r".gamma_\2",
    r"^(pooler\.dense|(\w+_)?classifier)\.": "head.",
    r"^(pooler\.)?layernorm\.": lambda found: "fc_norm." if found[1] else "norm.",
}
"""Patterns of transformers' names and their timm names."""
_name = partial(convert.renamed, rules=TRANSFORMERS)
FORMS: dict[str, tuple[Any, ...]] = {name: (name,) for name in ("norm1", "norm2", "attn.proj")} | {
    "attn.qkv.weight": (
        Made(convert.joined, ("attn.q.weight", "attn.k.weight", "attn.v.weight")),
        "attn.qkv.weight",
    ),
    "attn.q_bias": (
        "attn.q_bias",
        "attn.q.bias",
        Made(lambda bias: bias.chunk(3)[0], ("attn.qkv.bias",)),
        0.0,
    ),
    "attn.v_bias": (
        "attn.v_bias",
        "attn.v.bias",
        Made(lambda bias: bias.chunk(3)[2], ("attn.qkv.bias",)),
        0.0,
    ),
    "scale1": ("gamma_1", 1.0),
    "scale2": ("gamma_2", 1.0),
    "ffn.fc1": ("mlp.fc1",),
    "ffn.fc2": ("mlp.fc2",),
}
"""Possible sources of each tensor of a block: the first that the file has, else the last."""


def repeated(num: int, tensor: Tensor) -> Tensor:
    """Return a stack of equal tensors."""
    return tensor.expand(num, *tensor.shape)


def is_image_encoder(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether tensors are those of an image encoder."""
    names = set(map(_name, tensors))
    return "patch_embed.proj.weight" in names and not names.isdisjoint(
        f"blocks.0.attn.{part}.weight" for part in ("qkv", "q")
    )


def plan(tensors: dict[str, Tensor], where: str, args: ConvertArgs) -> Plan:
    """Return the plan of an encoder to start pre-training from. Raises UserError.

    --architecture: `eve` keeps EVE's blocks (quick-GELU, a norm before the first block), as its authors started from BEiT v2.
    `source` sets them to the source's, and features equal the source's. Others are the models of related systems' recipes.
    """
    tensors = {_name(name): tensor for name, tensor in tensors.items()}
    side = _side(tensors, where)  # before --drop takes the positions away
    tensors = convert.without(tensors, args.drop, where)
    width, _, patch_size, _ = tensors["patch_embed.proj.weight"].shape
    mlp_ratio = len(tensors["blocks.0.mlp.fc1.bias"]) / width
    if not (image_size := side * patch_size or args.image_size):
        raise UserError(
            f"{where}: has no positions, so the image size is unknown; give --image-size"
        )
    depth = convert.count("blocks.*", tensors)
    model, text_length = _model(
        args, (3 if depth >= 24 else 2) if args.num_deep_blocks is None else args.num_deep_blocks
    )
    is_relative = model.positions == "relative"
    if is_relative and (not side or "pos_embed" in tensors or args.image_size):
        problem = f"--architecture {args.architecture} takes relative positions only, which later runs resize"
        raise UserError(
            f"{where}: {problem}: leave out --image-size, and take --architecture eve for absolute ones"
        )
    if not is_relative and any(RELATIVE in name for name in tensors):
        raise UserError(where + RELATIVE_HINT)
    num_heads = args.num_heads or (WIDE if width > 1024 else max(width // convert.HEAD_WIDTH, 1))
    model = replace(model, embed_dim=width, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio)
    sizes = InputConfig(image_size=image_size, patch_size=patch_size, text_length=text_length)
    notes = f"; other tensors are random; next: eve pretrain RECIPE --init {args.target}, which takes its shape"
    more: dict[str, Any] = {
        "table": key_table(tensors, model, args),
        "name": "vision",
        "is_partial": True,
        "notes": notes,
    }
    return Plan(
        tensors=tensors,
        sizes=sizes,
        model=model,
        unused=UNUSED + rf"|.*{RELATIVE}_index$" * is_relative,
        **more,
    )


def key_table(tensors: Mapping[str, Tensor], model: EveModelConfig, args: ConvertArgs) -> Table:
    """Return the source of each of our tensors that comes from an image encoder."""
    copies = args.copy or ("none" if model.positions == "relative" else "all")
    networks = ["image", *["text"] * (copies != "none"), *["vl"] * (copies == "all")]
    block: dict[str, Any] = {}
    for ours, forms in FORMS.items():
        sources = ((form, form.sources[0] if isinstance(form, Made) else form) for form in forms)
        block[ours] = next(
            (form for form, source in sources if f"blocks.0.{source}" in tensors), forms[-1]
        )
    block |= {f"ffn.{network}": "mlp" for network in networks} | {
        f"ffn.norm_{network}": "norm2" for network in networks
    }
    if copies == "all":  # experts start out alike
        repeat = partial(repeated, model.num_experts)
        block |= {
            f"ffn.experts.{part.replace('.', '_')}": Made(repeat, (f"mlp.{part}",))
            for part in PARTS
        }
    table: dict[str, Any] = {
        "encoder.image.cls": Made(torch.flatten, ("cls_token",)),
        "encoder.image.proj.weight": Made(
            lambda weight: weight.flatten(1), ("patch_embed.proj.weight",)
        ),
        "encoder.image.proj.bias": "patch_embed.proj.bias",
        "encoder.norm": "norm"
        if "norm.weight" in tensors
        else "fc_norm",  # the latter after a mean of the patches
    }
    if "pos_embed" in tensors:
        table["encoder.image.positions"] = Made(
            lambda positions: positions.flatten(0, 1), ("pos_embed",)
        )
    if model.positions == "relative":
        tables = tuple(
            f"blocks.{number}.attn.{RELATIVE}_bias_table" for number in range(model.depth)
        )
        table["encoder.relative.image_bias"] = Made(
            lambda *tables: torch.cat(tables, dim=1), tables
        )
    if args.architecture == "source":
        table["encoder.image.type_embed"] = 0.0
    return table | under("encoder.blocks.*.", "blocks.*.", block)


FLAGS = ("architecture", "copy", "num_experts", "num_deep_blocks")
IMAGE_ENCODERS = Family("an image encoder", FLAGS, is_image_encoder, plan)


def _model(args: ConvertArgs, num_deep_blocks: int) -> tuple[EveModelConfig, int]:
    """Return the model, not yet of the encoder's sizes, and the longest text.

    Raises UserError.
    """
    if args.architecture in ("eve", "source"):
        num_experts = EveModelConfig.num_experts if args.num_experts is None else args.num_experts
        experts = {"num_experts": num_experts, "top_k": min(EveModelConfig.top_k, num_experts)}
        like_source: dict[str, Any] = (
            {"activation": "gelu", "norm_pre": False} if args.architecture == "source" else {}
        )
        return EveModelConfig(
            num_deep_blocks=num_deep_blocks, **experts, **like_source
        ), InputConfig.text_length
    if (recipe := load_installed("architectures", args.architecture)) is None:
        known = ["eve", "source", *installed("architectures")]
        raise UserError(f"{args.source}: no --architecture {nearest(args.architecture, known)}")
    if args.num_experts is not None:
        name = args.architecture
        raise UserError(
            f"{args.source}: --num-experts has no effect with --architecture {name}, without experts; leave it out"
        )
    return replace(recipe().model, num_deep_blocks=num_deep_blocks), recipe().input.text_length


RELATIVE_HINT = (
    ": its attention adds a relative position bias, which EVE's does not have (its authors started from BEiT v2 without it): "
    f"--drop {RELATIVE} leaves the bias out and learns positions again; an --architecture with relative positions keeps it"
)


def _side(tensors: Mapping[str, Tensor], where: str) -> int:
    """Return the patches per side from positions; 0 without any."""
    if "pos_embed" in tensors:
        return convert.side_of(tensors["pos_embed"].shape[1:-1].numel(), where)
    tables = [tensor for name, tensor in tensors.items() if name.endswith(f"{RELATIVE}_bias_table")]
    return convert.relative_side_of(tables[0].shape[:1].numel(), 3, where) if tables else 0
