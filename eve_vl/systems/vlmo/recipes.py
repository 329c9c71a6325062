"""Recipes of VLMo (Bao et al. 2022, arXiv 2111.02358).

VLMo is EVE's encoder with a network for pairs in the top blocks and relative positions. It trains
in three stages, each the --init of the next: images; texts with frozen attention; pairs with ITC,
ITM and MLM. The paper's first stage is a published BEiT, which also learnt from labels; ours
reconstructs pixels.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from eve_vl.config import (
    Config,
    DataConfig,
    EveModelConfig,
    InputConfig,
    TokenizerConfig,
    TrainConfig,
)
from eve_vl.config.task import TaskConfig
from eve_vl.recipes.settings import SCENES, SMALL, at_paper_scale, starts_from
from eve_vl.systems.vlmo.config import VlmoModelConfig
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.tasks.nlvr2.config import NLVR2Config
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.vqa.config import VQAConfig

Kind = Literal["image", "text", "image_text"]
FROZEN_WITH_TEXTS = (
    "encoder.blocks.*.attn.*",
    "encoder.blocks.*.norm1.*",
    "encoder.blocks.*.scale?",
    "encoder.blocks.*.ffn.*image*",
    "encoder.image.proj.*",
    "encoder.image.cls",
)
"""Parameters of the image stage that the text stage keeps."""
VLMO = VlmoModelConfig()
TINY = replace(
    VLMO, stem="conv", embed_dim=96, depth=4, num_heads=3, num_deep_blocks=1, drop_path=0.0, **SMALL
)
LARGE = replace(VLMO, embed_dim=1024, depth=24, num_heads=16, num_deep_blocks=3)
PLUS = replace(LARGE, embed_dim=544, positions="learned", layer_scale_init=1.0)
MASKED: dict[str, Any] = {
    "whole_word_masking": True,
    "text_mask_ratio": 0.15,
    "mask_replace_prob": 0.2,
    "mask_replace_source": "vocabulary",
}
TASKS: dict[str, MaskedSignalConfig] = {
    "image": MaskedSignalConfig(mlm_weight=0.0),
    "text": MaskedSignalConfig(mim_weight=0.0, **MASKED),
    "image_text": ContrastMatchConfig(mlm_weight=0.25, itm_negatives="global", **MASKED),
}
"""The task of each stage, by its modality."""


def vlmo_tiny_images() -> Config:
    """VLMo's first stage on built-in scenes: seconds.

    It reads no captions. They train the tokenizer only.

    eve pretrain vlmo_tiny_images
    """
    config = _tiny("vlmo_tiny_images", "image", steps=150)
    decoder = {
        "decoder_depth": 1,
        "decoder_dim": 48,
        "decoder_num_heads": 3,
        "normalize_targets": False,
    }
    return replace(config, task=replace(config.task, **decoder))


def vlmo_tiny_texts() -> Config:
    """VLMo's second stage on the captions of built-in scenes: seconds.

    eve pretrain vlmo_tiny_texts --init runs/vlmo_tiny_images
    """
    return _tiny("vlmo_tiny_texts", "text", steps=150)


def vlmo_tiny() -> Config:
    """VLMo's third stage, scenes with their captions: token accuracy 0.082.

    With a wrong image it is 0.064. A minute on one core.

    eve pretrain vlmo_tiny --init runs/vlmo_tiny_texts
    """
    return _tiny("vlmo_tiny", "image_text", steps=300)


def vlmo_base_images() -> Config:
    """VLMo-Base, images, by reconstructing masked pixels.

    The paper starts from a BEiT (eve convert --architecture vlmo).

    eve pretrain vlmo_base_images --data.train IMAGES --data.val held-out --tokenizer.path vocab.txt
    """
    return _stage("vlmo_base_images", VLMO, "image", lr=2e-4)


def vlmo_base_texts() -> Config:
    """VLMo-Base, texts of 196 tokens: 200k steps at batch 1024.

    eve pretrain vlmo_base_texts --init runs/vlmo_base_images --data.train TEXTS.txt --data.val held-out
    """
    return _stage("vlmo_base_texts", VLMO, "text", lr=2e-4)


def vlmo_base() -> Config:
    """VLMo-Base on pairs: 4M images, 200k steps at batch 1024.

    eve pretrain vlmo_base --init runs/vlmo_base_texts --data.train 'pairs-{0000..0999}.tar' --data.val val.jsonl
    """
    return _stage("vlmo_base", VLMO, "image_text", lr=2e-4)


def vlmo_base_plus_images() -> Config:
    """VLMo-Base plus, images, by reconstructing masked pixels.

    The paper starts from a BEiT of this unusual width.

    eve pretrain vlmo_base_plus_images --data.train IMAGES --data.val held-out --tokenizer.path vocab.txt
    """
    return _stage("vlmo_base_plus_images", PLUS, "image", lr=2e-4)


def vlmo_base_plus_texts() -> Config:
    """VLMo-Base plus, texts as long as captions: 200k steps at batch 1024.

    eve pretrain vlmo_base_plus_texts --init runs/vlmo_base_plus_images --data.train TEXTS.txt --data.val held-out
    """
    return _stage("vlmo_base_plus_texts", PLUS, "text", lr=2e-4)


def vlmo_base_plus() -> Config:
    """VLMo-Base plus on pairs: 4M images, 200k steps at batch 1024.

    eve pretrain vlmo_base_plus --init runs/vlmo_base_plus_texts --data.train 'pairs-{0000..0999}.tar' --data.val val.jsonl
    """
    return _stage("vlmo_base_plus", PLUS, "image_text", lr=1e-4)


def vlmo_large_images() -> Config:
    """VLMo-Large, images, by reconstructing masked pixels.

    The paper starts from a BEiT (eve convert --architecture vlmo).

    eve pretrain vlmo_large_images --data.train IMAGES --data.val held-out --tokenizer.path vocab.txt
    """
    return _stage("vlmo_large_images", LARGE, "image", lr=2e-4)


def vlmo_large_texts() -> Config:
    """VLMo-Large, texts of 196 tokens: 200k steps at batch 1024.

    The learning rate is not published.

    eve pretrain vlmo_large_texts --init runs/vlmo_large_images --data.train TEXTS.txt --data.val held-out
    """
    return _stage("vlmo_large_texts", LARGE, "text", lr=2e-4)


def vlmo_large() -> Config:
    """VLMo-Large on pairs: 4M images, 200k steps at batch 1024.

    eve pretrain vlmo_large --init runs/vlmo_large_texts --data.train 'pairs-{0000..0999}.tar' --data.val val.jsonl
    """
    return _stage("vlmo_large", LARGE, "image_text", lr=5e-5)


@starts_from("vlmo_base")
def vlmo_vqa(init: Config) -> Config:
    """VQA v2 as in VLMo: 480 pixels, 10 epochs of batch 128.

    The answer head learns twenty times as fast.

    eve finetune vlmo_vqa --init runs/vlmo_base --data.train QUESTIONS.json --data.val QUESTIONS.json
    """
    return _finetuned(
        init,
        "vlmo_vqa",
        VQAConfig(),
        image_size=480,
        drop_path=0.15,
        steps=34_000,
        batch_size=128,
        lr=_by_size(init, base=3e-5, plus=3e-5, large=1.5e-5),
        head_lr_multiplier=20,
    )


@starts_from("vlmo_base")
def vlmo_nlvr2(init: Config) -> Config:
    """NLVR2 as in VLMo: 384 pixels, 10 epochs of batch 128.

    The right image has its own type embedding.

    eve finetune vlmo_nlvr2 --init runs/vlmo_base --data.train train.json --data.val dev.json
    """
    return _finetuned(
        init,
        "vlmo_nlvr2",
        NLVR2Config(second_image_type_embedding=True),
        image_size=384,
        drop_path=_by_size(init, base=0.1, plus=0.2, large=0.15),
        steps=6750,
        batch_size=128,
        lr=_by_size(init, base=5e-5, plus=3e-5, large=3e-5),
    )


@starts_from("vlmo_base")
def vlmo_retrieval(init: Config) -> Config:
    """COCO retrieval as in VLMo, with ITC only: 3,000 steps of batch 3072.

    Images have 384 pixels. Flickr30K takes 1,500 steps from that run.

    eve finetune vlmo_retrieval --init runs/vlmo_base --data.train dataset_coco.json#train --data.val dataset_coco.json#val
    """
    return _finetuned(
        init,
        "vlmo_retrieval",
        RetrievalConfig(itm_weight=0.0, rerank=0),
        image_size=384,
        drop_path=0.2,
        steps=3000,
        batch_size=3072,
        lr=_by_size(init, base=3e-5, plus=3e-5, large=2e-5),
    )


def _tiny(name: str, modality: Kind, *, steps: int) -> Config:
    """Return a stage on built-in scenes."""
    train = TrainConfig(
        steps=steps,
        batch_size=32,
        optimizer="muon",
        lr=1.2e-3,
        warmup=0.1,
        val_every=steps,
        save_every=steps,
    )
    return _pretraining(
        name,
        InputConfig(image_size=48, patch_size=8, text_length=32),
        TINY,
        replace(SCENES, modality=modality),
        TokenizerConfig(vocab_size=512),
        train,
    )


def _stage(name: str, model: VlmoModelConfig, modality: Kind, *, lr: float) -> Config:
    """Return a stage at the paper's scale.

    Texts have 196 tokens with relative positions, captions 40.
    """
    is_short = modality == "image_text" or model.positions == "learned"
    train = TrainConfig(
        steps=200_000,
        batch_size=1024,
        accumulation=4 if model is VLMO else 8,
        lr=lr,
        warmup=0.0125,
        schedule="linear",
        clip_norm=0.0,
        val_every=5000,
        save_every=5000,
    )
    return _pretraining(
        name,
        InputConfig(text_length=40 if is_short else 196),
        model,
        DataConfig(modality=modality, augment="rand", num_workers=8),
        TokenizerConfig(vocab_size=30_522),
        train,
    )


def _pretraining(
    name: str,
    sizes: InputConfig,
    model: VlmoModelConfig,
    data: DataConfig,
    tokenizer: TokenizerConfig,
    train: TrainConfig,
) -> Config:
    """Return the run of a stage; that of texts freezes what images taught."""
    if data.modality == "text":
        train = replace(train, freeze=FROZEN_WITH_TEXTS)
    return Config(
        recipe=name,
        out=Path("runs") / name,
        input=sizes,
        model=model,
        task=TASKS[data.modality],
        data=data,
        tokenizer=tokenizer,
        train=train,
    )


def _by_size(init: Config, *, base: float, plus: float, large: float) -> float:
    """Return the value for the size of the run to start from."""
    if init.model.embed_dim == PLUS.embed_dim:
        return plus
    if init.model.embed_dim == LARGE.embed_dim:
        return large
    return base


def _finetuned(
    init: Config, name: str, task: TaskConfig, *, image_size: int, drop_path: float, **train: Any
) -> Config:
    """Return a run at the paper's scale.

    By default new parameters learn as fast as others.
    """
    model = init.model
    if isinstance(model, EveModelConfig):
        model = replace(model, drop_path=drop_path)
    train = {"head_lr_multiplier": 1, "clip_norm": 0.0} | train
    return at_paper_scale(replace(init, model=model), name, task, image_size, "rand", **train)
