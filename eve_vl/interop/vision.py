"""Image encoders as a start for pre-training: BEiT, BEiT v2, timm's beit and vit, transformers' ViT, DeiT, BEiT and DINOv2.

| ours | comes from |
|---|---|
| patch projection, [CLS], positions, attention, LayerScale, norms of the image, final norm | the image encoder |
| image feed-forward networks | the image encoder |
| text feed-forward networks and norms, experts | copies of the image encoder's (sparse upcycling), or random: `--copy` |
| text embeddings, type embeddings, router | random; with `--architecture source` type embeddings are 0 |

A ViT's key bias is left out: it adds a constant to all scores of a query, which softmax ignores.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from eve_vl.config import EveModelConfig, InputConfig
from eve_vl.config.base import installed, load_installed
from eve_vl.interop import ConvertArgs, convert
from eve_vl.interop.convert import Family, Plan
from eve_vl.interop.published import SAME
from eve_vl.model.ffn import NORM, PARTS, POLICIES, Copies
from eve_vl.tasks.task import Task
from eve_vl.utils.errors import UserError, nearest

WIDE = 16  # heads of the image encoders that are wider than 1024
UNUSED = ("head.", "head_dist.", "lm_head.", "mask_token", "cls_pt_layers.", "pre_logits.", "dist_token", "fc_norm.")
RELATIVE = "relative_position"
FFN = (*(f"norm2.{part}" for part in NORM), *(f"mlp.{part}" for part in PARTS))


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
    r"\.(lambda_|layer_scale)([12])(\.lambda1)?$": r".gamma_\2",
    r"^(pooler\.dense|(\w+_)?classifier)\.": "head.",
    r"^(pooler\.)?layernorm\.": lambda found: "fc_norm." if found[1] else "norm.",
}
"""Patterns of transformers' names and their timm names."""


def _name(name: str) -> str:
    for pattern, new in TRANSFORMERS.items():
        name = re.sub(pattern, new, name)
    return name


def is_image_encoder(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether tensors are those of an image encoder."""
    names = set(map(_name, tensors))
    return "patch_embed.proj.weight" in names and not names.isdisjoint(f"blocks.0.attn.{part}.weight" for part in ("qkv", "q"))


def _joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join each block's query, key and value weights, with separate biases as in BEiT."""
    for attention in [name.removesuffix("q.weight") for name in tensors if name.endswith(".attn.q.weight")]:
        names = [name for part in "qkv" if (name := f"{attention}{part}.weight") in tensors and tensors[name].ndim == 2]
        if len(names) == 3 and len({(tensors[name].shape, tensors[name].dtype) for name in names}) == 1:
            tensors[f"{attention}qkv.weight"] = torch.cat([tensors.pop(name) for name in names])
        tensors.pop(f"{attention}k.bias", None)
        biases = {part: tensors.pop(f"{attention}{part}.bias", None) for part in "qv"}
        tensors |= {f"{attention}{part}_bias": bias for part, bias in biases.items() if bias is not None}
    return tensors


def plan(tensors: Mapping[str, Tensor], where: str, args: ConvertArgs) -> Plan:
    """Return an encoder to start pre-training from. Raises UserError.

    --architecture: `eve` keeps EVE's blocks (quick-GELU, a norm before the first block), as its authors started from BEiT v2.
    `source` sets them to the source's, and features equal the source's. Others are the models of related systems' recipes.
    """
    tensors = {_name(name): tensor for name, tensor in tensors.items()}
    side = _side(tensors, where)  # before --drop takes the positions away
    tensors = _joined(convert.without(tensors, args.drop, where))
    is_deep = any(name.startswith("blocks.23.") for name in tensors)
    model, text_length = _model(args, 3 if is_deep else 2)  # as published
    is_relative = model.positions == "relative"
    if is_relative and (not side or "pos_embed" in tensors or args.image_size):
        raise UserError(
            f"{where}: --architecture {args.architecture} takes relative positions only, which later runs resize: leave out "
            "--image-size, and take --architecture eve for absolute ones"
        )
    sizes, model = _sizes(tensors, where, model, args.num_heads, side, args.image_size)
    given, used = _given(tensors, model, args.copy or ("none" if is_relative else "all"))

    def finish(_: dict[str, Tensor], task: Task[Any]) -> dict[str, Tensor]:
        ours = task.state_dict()
        for name, tensor in given.items():
            if ours[name].shape == (model.num_experts, *tensor.shape):  # experts start out alike
                given[name] = tensor.expand_as(ours[name])
        convert.check_shapes(given, {name: ours[name] for name in given}, f"{where}: what becomes")
        is_source = args.architecture == "source"
        return given | ({"encoder.image.type_embed": torch.zeros(model.embed_dim)} if is_source else {})

    return Plan(
        tensors=tensors,
        sizes=replace(sizes, text_length=text_length),
        model=model,
        name="vision",
        used=frozenset(used),
        unused=(*UNUSED, *[name for name in tensors if name.endswith(f"{RELATIVE}_index") and is_relative]),
        relative_hint=RELATIVE_HINT,
        positions="" if is_relative else "image.positions",
        is_partial=True,
        finish=finish,
        notes=f"; other tensors are random; next: eve pretrain RECIPE --init {args.target}, which takes its shape",
    )


IMAGE_ENCODERS = Family(
    title="an image encoder",
    flags=("architecture", "copy", "num_experts", "num_deep_blocks", "seed"),
    matches=is_image_encoder,
    plan=plan,
)


def _model(args: ConvertArgs, num_deep_blocks: int) -> tuple[EveModelConfig, int]:
    """Return the model, not yet of the encoder's sizes, and the longest text. Raises UserError."""
    num_deep_blocks = num_deep_blocks if args.num_deep_blocks is None else args.num_deep_blocks
    if args.architecture in ("eve", "source"):
        num_experts = EveModelConfig.num_experts if args.num_experts is None else args.num_experts
        like_source: dict[str, Any] = {"activation": "gelu", "norm_pre": False} if args.architecture == "source" else {}
        top_k = min(EveModelConfig.top_k, num_experts)
        model = EveModelConfig(num_experts=num_experts, num_deep_blocks=num_deep_blocks, top_k=top_k, **like_source)
        return model, InputConfig.text_length
    if (recipe := load_installed("architectures", args.architecture)) is None:
        known = ["eve", "source", *installed("architectures")]
        raise UserError(f"{args.source}: no --architecture {nearest(args.architecture, known)}")
    if args.num_experts is not None:
        name = args.architecture
        raise UserError(f"{args.source}: --num-experts has no effect with --architecture {name}, without experts; leave it out")
    config = recipe()
    return replace(config.model, num_deep_blocks=num_deep_blocks), config.input.text_length


RELATIVE_HINT = (
    "; its attention adds a relative position bias, which EVE's does not have (its authors started from BEiT v2 without it): "
    f"--drop {RELATIVE} leaves the bias out and learns positions again; an --architecture with relative positions keeps it"
)


def _side(tensors: Mapping[str, Tensor], where: str) -> int:
    """Return the patches per side from absolute or relative positions; 0 without either."""
    if "pos_embed" in tensors:
        return convert.side_of(tensors["pos_embed"].shape[1:-1].numel(), where)
    tables = [tensor for name, tensor in tensors.items() if name.endswith(f"{RELATIVE}_bias_table")]
    if not tables:
        return 0
    rows = tables[0].shape[:1].numel()  # one for each of the (2 side - 1)² differences, three for the [CLS]
    side = round((max(rows - 3, 0) ** 0.5 + 1) / 2)
    if side < 2 or (2 * side - 1) ** 2 + 3 != rows:
        raise UserError(f"{where}: {rows} relative positions are not those of a square of patches with a [CLS]")
    return side


def _sizes(
    tensors: Mapping[str, Tensor], where: str, model: EveModelConfig, num_heads: int, side: int, image_size: int
) -> tuple[InputConfig, EveModelConfig]:
    """Return the sections at the image encoder's sizes; image_size applies without positions."""
    try:
        width, channels, patch_size, _ = tensors["patch_embed.proj.weight"].shape
        blocks = {int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")}
        ffn_dim = len(tensors["blocks.0.mlp.fc1.bias"])
    except convert.ODD as error:
        raise UserError(f"{where}: not a BEiT or ViT image encoder ({error} is missing or unusual)") from None
    if channels != 3:
        raise UserError(f"{where}: its images have {channels} channels, not 3")
    num_heads, depth = num_heads or (WIDE if width > 1024 else 0), convert.count_numbered(blocks, "blocks", where)
    image_size = side * patch_size or image_size
    if not image_size:
        raise UserError(f"{where}: has no positions, so the image size is unknown; give --image-size")
    if model.num_deep_blocks > depth:
        raise UserError(f"{where}: has {depth} blocks, fewer than --num-deep-blocks {model.num_deep_blocks}")
    return InputConfig(image_size=image_size, patch_size=patch_size), replace(
        model, embed_dim=width, depth=depth, num_heads=convert.heads_of(width, num_heads, where), mlp_ratio=ffn_dim / width
    )


def _given(tensors: Mapping[str, Tensor], model: EveModelConfig, copies: Copies) -> tuple[dict[str, Tensor], list[str]]:
    """Return our tensors from the image encoder, and the names of its tensors in use."""
    used: list[str] = []

    def take(name: str) -> Tensor:
        used.append(name)
        return tensors.get(name, torch.empty(0))  # missing tensors are reported later

    given = {
        "encoder.image.cls": take("cls_token").flatten(),
        "encoder.image.proj.weight": take("patch_embed.proj.weight").flatten(1),
        "encoder.image.proj.bias": take("patch_embed.proj.bias"),
    }
    if "pos_embed" in tensors:
        given["encoder.image.positions"] = take("pos_embed").flatten(0, 1)
    if model.positions == "relative":
        tables = [take(f"blocks.{block}.attn.{RELATIVE}_bias_table") for block in range(model.depth)]
        given["encoder.relative.image_bias"] = torch.cat(tables, dim=1) if all(each.ndim == 2 for each in tables) else tables[0]
    final = "norm" if "norm.weight" in tensors else "fc_norm"  # BEiT fine-tuned on the mean of the patches has only the latter
    given |= {f"encoder.norm.{part}": take(f"{final}.{part}") for part in NORM}
    for block, policy in enumerate(model.ffn_policies):
        theirs, name = f"blocks.{block}", f"encoder.blocks.{block}"
        given |= {f"{name}.{same}": take(f"{theirs}.{same}") for same in SAME}
        if not any(f"{theirs}.attn.{key}" in tensors for key in ("qkv.bias", "q_bias")):
            q_bias = v_bias = torch.zeros(model.embed_dim)
        elif f"{theirs}.attn.qkv.bias" in tensors:
            q_bias, _, v_bias = take(f"{theirs}.attn.qkv.bias").flatten().tensor_split(3)
        else:
            q_bias, v_bias = take(f"{theirs}.attn.q_bias"), take(f"{theirs}.attn.v_bias")
        given |= {f"{name}.attn.q_bias": q_bias, f"{name}.attn.v_bias": v_bias}
        for scale, other in (("scale1", ("gamma_1", "ls1.gamma")), ("scale2", ("gamma_2", "ls2.gamma"))):
            found = [f"{theirs}.{key}" for key in other if f"{theirs}.{key}" in tensors]
            given[f"{name}.{scale}"] = take(found[0]) if found else torch.ones(model.embed_dim)
        ffn = {part: take(f"{theirs}.{part}") for part in FFN}
        given |= {f"{name}.{ours}": ffn[part] for ours, part in POLICIES[policy].copied(copies).items()}
    return given, used
