"""Tiny CLIP and SigLIP with random weights, as transformers and open_clip save them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

SIDE = 32
TEXT_LENGTH = 16
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
PIECES = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz", "▁a", "at", "▁c", "▁hello"]
SIGLIP2_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *PIECES[4:]]
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGE_TOWER = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "image_size": SIDE,
    "patch_size": 8,
}
TEXT_TOWER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": TEXT_LENGTH,
}


@torch.no_grad()
def randomized(model: Any) -> Any:
    """Give every bias, norm and embedding a value that matters."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim and not name.endswith("logit_scale"):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def numbered(tokens: list[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


# transformers


def save_clip(folder: Path) -> Any:
    word_ends = [f"{letter}</w>" for letter in LETTERS]
    tokens = [*LETTERS, *word_ends, "at</w>", "<|startoftext|>", "<|endoftext|>"]
    size = len(tokens)
    text = TEXT_TOWER | {"vocab_size": size, "bos_token_id": size - 2, "eos_token_id": size - 1}
    config = transformers.CLIPConfig(
        text_config=text,
        vision_config=IMAGE_TOWER,
        projection_dim=24,
    )
    model = randomized(transformers.CLIPModel(config))
    model.save_pretrained(folder)
    merges: Any = [("a", "t</w>")]
    transformers.CLIPTokenizer(vocab=numbered(tokens), merges=merges).save_pretrained(folder)
    crop: Any = {"height": SIDE, "width": SIDE}
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=crop)  # pyright: ignore
    processor.save_pretrained(folder)
    return model


def save_siglip(folder: Path) -> Any:
    scored_pieces = []
    for number, piece in enumerate(PIECES):
        scored_pieces.append((piece, float(number - len(PIECES))))
    backend = Backend(models.Unigram(scored_pieces, 2, False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)  # pyright: ignore
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    return save_siglip_model(folder, len(PIECES), Image.Resampling.BICUBIC)


def save_siglip2(folder: Path) -> Any:
    tokens = [*SIGLIP2_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256))]
    merges: Any = [("a", "t")]
    tokenizer: Any = transformers.Siglip2Tokenizer(vocab=numbered(tokens), merges=merges)
    tokenizer.save_pretrained(folder)
    return save_siglip_model(folder, len(tokens), Image.Resampling.BILINEAR)


def save_siglip_model(folder: Path, vocab_size: int, resampling: Image.Resampling) -> Any:
    text = TEXT_TOWER | {"vocab_size": vocab_size, "projection_size": 48}
    config = transformers.SiglipConfig(text_config=text, vision_config=IMAGE_TOWER)
    model = randomized(transformers.SiglipModel(config))
    model.save_pretrained(folder)
    size: Any = {"height": SIDE, "width": SIDE}
    processor = transformers.SiglipImageProcessor(size=size, resample=int(resampling))  # pyright: ignore
    processor.save_pretrained(folder)
    return model


KINDS: dict[str, Callable[[Path], Any]] = {
    "clip": save_clip,
    "siglip": save_siglip,
    "siglip2": save_siglip2,
}


# open_clip

OPEN_CLIP_TEXT = {
    "context_length": TEXT_LENGTH,
    "width": 64,
    "heads": 4,
    "layers": 2,
}
OPEN_CLIP = {
    "embed_dim": 40,
    "vision_cfg": {"image_size": SIDE, "width": 128, "layers": 3, "patch_size": 8},
    "text_cfg": OPEN_CLIP_TEXT,
    "quick_gelu": True,
}
OPEN_SIGLIP = {
    "embed_dim": 768,
    "vision_cfg": {
        "timm_model_name": "vit_base_patch32_siglip_256",
        "timm_pool": "map",
        "timm_proj": "none",
        "image_size": 256,
    },
    "text_cfg": OPEN_CLIP_TEXT
    | {
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"},
        "tokenizer_kwargs": {"clean": "canonicalize"},
    },
    "init_logit_bias": -10,
}


def save_open_clip(kind: str, folder: Path, tokenizer: Path) -> Any:
    """Save a model as open_clip does, with the tokenizer of another."""
    open_clip = pytest.importorskip("open_clip")
    folder.mkdir()
    shutil.copy(tokenizer, folder)
    config: dict[str, Any] = {"clip": OPEN_CLIP, "siglip": OPEN_SIGLIP}[kind]
    vocab_size = len(json.loads(tokenizer.read_text())["model"]["vocab"])
    config = config | {"text_cfg": config["text_cfg"] | {"vocab_size": vocab_size}}
    preprocessing = {"interpolation": "bicubic"}
    if kind == "clip":
        model = open_clip.CLIP(**config)
        preprocessing |= {"mean": CLIP_MEAN, "std": CLIP_STD, "resize_mode": "shortest"}
    else:
        model = open_clip.CustomTextCLIP(**config)
        config["custom_text"] = True
        preprocessing |= {
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "resize_mode": "squash",
        }
    torch.save(randomized(model).state_dict(), folder / "open_clip_pytorch_model.bin")
    content = {"model_cfg": config, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return model
