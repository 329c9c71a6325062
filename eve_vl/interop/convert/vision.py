"""Image encoders (BEiT and BEiT v2 as released, all that timm calls beit or vit, and ViT, DeiT, BEiT and DINOv2 as transformers
names their weights) as a start for pre-training.

| ours | comes from |
|---|---|
| patch projection, [CLS], positions, attention, LayerScale, norms of the image, final norm | the image encoder |
| image feed-forward networks | the image encoder |
| text feed-forward networks and norms, experts | copies of the image encoder's (sparse upcycling), or random (VLMo): `--copy` |
| text embeddings, type embeddings, router | random; with `--architecture source` type embeddings are 0 |

The key bias of a ViT is left out: it adds the same to all scores of a query, and the softmax takes that away again.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from eve_vl.config import EveModelConfig, HeadlessConfig, InputConfig
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.interop.convert import published
from eve_vl.interop.convert.keys import SAME
from eve_vl.model.ffn import NORM, PARTS, POLICIES, Copies
from eve_vl.recipes import get_recipe
from eve_vl.run.loading import build_task
from eve_vl.utils.errors import UserError
from eve_vl.utils.runtime import seed_everything

Architecture = Literal["eve", "source", "vlmo"]
WIDE = 16  # heads of the image encoders that are wider than 1024
UNUSED = ("head.", "head_dist.", "lm_head.", "mask_token", "cls_pt_layers.", "pre_logits.", "dist_token", "fc_norm.")
RELATIVE = "relative_position"
VLMO = "vlmo_base_images"
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
"""What names of transformers become; those of timm stay."""


def _name(name: str) -> str:
    for pattern, new in TRANSFORMERS.items():
        name = re.sub(pattern, new, name)
    return name


def is_vision(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of an image encoder."""
    names = set(map(_name, tensors))
    return "patch_embed.proj.weight" in names and not names.isdisjoint(f"blocks.0.attn.{part}.weight" for part in ("qkv", "q"))


def _joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with one for the queries, keys and values of a block, whose biases are apart in BEiT's way."""
    for attention in [name.removesuffix("q.weight") for name in tensors if name.endswith(".attn.q.weight")]:
        names = [name for part in "qkv" if (name := f"{attention}{part}.weight") in tensors and tensors[name].ndim == 2]
        if len(names) == 3 and len({(tensors[name].shape, tensors[name].dtype) for name in names}) == 1:
            tensors[f"{attention}qkv.weight"] = torch.cat([tensors.pop(name) for name in names])
        tensors.pop(f"{attention}k.bias", None)
        biases = {part: tensors.pop(f"{attention}{part}.bias", None) for part in "qv"}
        tensors |= {f"{attention}{part}_bias": bias for part, bias in biases.items() if bias is not None}
    return tensors


def import_vision(
    tensors: Mapping[str, Tensor],
    where: str,
    run: Path,
    *,
    tokenizer: Path,
    architecture: Architecture = "eve",
    copy: Copies | None = None,
    num_experts: int = 32,
    num_deep_blocks: int | None = None,
    num_heads: int = 0,
    image_size: int = 0,
    seed: int = 0,
    drop: Sequence[str] = (),
) -> str:
    """Write a run folder with an encoder to start pre-training from, and return a summary.

    architecture: `eve` keeps EVE's blocks (quick-GELU, a norm before the first block), as its authors started from BEiT v2;
    `source` sets them to the source's, so that features are the source's; `vlmo` gives VLMo's, which has BEiT's relative
    positions, to start its second stage from. copy: what gets copies of the image networks,
    besides themselves; None: all, in VLMo nothing. num_experts: of each of the last num_deep_blocks blocks; None: 2, of 24 and
    more 3. image_size: resize the positions to this size; 0: the source's. drop: parts of names to leave out. Raises UserError.
    """
    published.check_new(run)
    if architecture == "vlmo" and num_experts != EveModelConfig.num_experts:
        raise UserError(f"{where}: --num-experts has no use with --architecture vlmo, which has none; leave it out")
    tensors = {_name(name): tensor for name, tensor in tensors.items()}
    side = _side(tensors, where)  # what tells it may be dropped
    tensors = _joined(published.without(tensors, drop, where))
    copy = copy or ("none" if architecture == "vlmo" else "all")
    if num_deep_blocks is None:
        num_deep_blocks = 3 if any(name.startswith("blocks.23.") for name in tensors) else 2  # as published
    top_k = min(EveModelConfig.top_k, num_experts)
    model = EveModelConfig(num_experts=num_experts, num_deep_blocks=num_deep_blocks, top_k=top_k)
    if architecture == "vlmo":
        model = dataclasses.replace(get_recipe(VLMO).model, num_deep_blocks=num_deep_blocks)
        assert isinstance(model, EveModelConfig)
        if not side or "pos_embed" in tensors or image_size:
            raise UserError(
                f"{where}: --architecture vlmo takes relative positions alone, which runs that start from it resize: leave out "
                "--image-size, and take --architecture eve for absolute ones"
            )
    sizes, model = _sizes(tensors, where, model, num_heads, side, image_size)
    if architecture == "source":
        model = dataclasses.replace(model, activation="gelu", norm_pre=False)
    if architecture == "vlmo":
        sizes = dataclasses.replace(sizes, text_length=get_recipe(VLMO).input.text_length)
    words = Tokenizer.load(tokenizer)
    config = dataclasses.replace(published.config_for(sizes, model, HeadlessConfig(), run, where), recipe="vision")
    seed_everything(seed)
    task = build_task(config, words)
    ours = task.state_dict()
    given, used = _given(tensors, model, copy)
    known = {name for name in tensors if name.startswith(UNUSED)} - set(used)
    known |= {name for name in tensors if name.endswith(f"{RELATIVE}_index") and architecture == "vlmo"}
    published.check_keys(set(used), tensors.keys() - known, where, RELATIVE_HINT)
    for name, tensor in given.items():
        if ours[name].shape == (model.num_experts, *tensor.shape):  # experts start out alike
            given[name] = tensor.expand_as(ours[name])
    published.check_shapes(given, ours, f"{where}: what becomes")
    if architecture == "source":
        given["encoder.image.type_embed"] = torch.zeros(model.embed_dim)
    task.load_state_dict(given, strict=False)
    config = published.resized(config, task, image_size)
    published.write_run(run, config, words, task)
    return (
        f"{len(given)} of {len(ours)} tensors from {where}, the others random: {model.depth} blocks of width "
        f"{model.embed_dim}, {model.num_heads} heads, {config.input.image_size} pixels, patches of {sizes.patch_size}; go on "
        f"with eve pretrain RECIPE --init {run}, which takes its shape"
    )


RELATIVE_HINT = (
    "; its attention adds a relative position bias, which EVE's does not have (its authors started from BEiT v2 without it): "
    f"--drop {RELATIVE} leaves the bias out, and positions are learnt anew; --architecture vlmo has a place for it"
)


def _side(tensors: Mapping[str, Tensor], where: str) -> int:
    """Return the patches along a side, as positions or else a table of relative ones tell; 0 if nothing does."""
    if "pos_embed" in tensors:
        return published.side_of(tensors["pos_embed"].shape[1:-1].numel(), where)
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
    """Return the sections with the image encoder's sizes; its images are of image_size where no side is known."""
    try:
        width, channels, patch_size, _ = tensors["patch_embed.proj.weight"].shape
        blocks = {int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")}
        ffn_dim = len(tensors["blocks.0.mlp.fc1.bias"])
    except published.ODD as error:
        raise UserError(f"{where}: not a BEiT or ViT image encoder ({error} is missing or unusual)") from None
    if channels != 3:
        raise UserError(f"{where}: its images have {channels} channels, not 3")
    num_heads, depth = num_heads or (WIDE if width > 1024 else 0), published.numbered(blocks, "blocks", where)
    image_size = side * patch_size or image_size
    if not image_size:
        raise UserError(f"{where}: has no positions, which would tell the size of its images; give --image-size")
    if model.num_deep_blocks > depth:
        raise UserError(f"{where}: has {depth} blocks; --num-deep-blocks {model.num_deep_blocks} is more")
    return InputConfig(image_size=image_size, patch_size=patch_size), dataclasses.replace(
        model, embed_dim=width, depth=depth, num_heads=published.heads_of(width, num_heads, where), mlp_ratio=ffn_dim / width
    )


def _given(tensors: Mapping[str, Tensor], model: EveModelConfig, copies: Copies) -> tuple[dict[str, Tensor], list[str]]:
    """Return our tensors that the image encoder gives, and the names of its own that they come from."""
    used: list[str] = []

    def take(name: str) -> Tensor:
        used.append(name)
        return tensors.get(name, torch.empty(0))  # what is missing is reported with all else

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
