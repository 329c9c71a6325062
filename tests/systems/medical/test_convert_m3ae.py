"""Published M3AE checkpoints, tiny and at full size, against a slow forward pass.

Letters: T text tokens, P tokens of the image, N tokens of either, M those of the other, D width.
"""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import RobertaConfig, RobertaModel

from eve_vl.eve import Eve
from eve_vl.interop.convert import Conversion, config_for
from eve_vl.interop.weight_table import convert_tensor, resolve
from eve_vl.run.loading import build_untrained, load_run
from eve_vl.systems.medical.m3ae import convert as m3ae
from eve_vl.systems.medical.m3ae.config import M3aeModelConfig
from eve_vl.tasks.task import Sizes
from helpers.twins import Shapes

D = 32
DEPTHS = (3, 2, 2)
HEADS = 2
PATCH = 4
SIDE = 3
NUM_WORDS = 270
PLACES = 20
LABELS = 5
HEADS_OF = {
    "pairs": "contrast_match",
    "vqa": "vqa",
    "cls": "classification",
    "irtr": "retrieval",
    "": "headless",
}


def clip_blocks(shapes: Shapes, of: str, depth: int, width: int) -> None:
    for number in range(depth):
        block = f"{of}.resblocks.{number}"
        shapes.update(
            {
                f"{block}.attn.in_proj_weight": (3 * width, width),
                f"{block}.attn.in_proj_bias": (3 * width,),
            }
        )
        shapes.linear(f"{block}.attn.out_proj", width, width)
        shapes.linear(f"{block}.mlp.c_fc", 4 * width, width)
        shapes.linear(f"{block}.mlp.c_proj", width, 4 * width)
        shapes.norm(f"{block}.ln_1", width)
        shapes.norm(f"{block}.ln_2", width)


def bert_layer(shapes: Shapes, D: int, layer: str, *attentions: str) -> None:
    for attention in attentions:
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes.linear(f"{layer}.{attention}.{part}", D, D)
        shapes.norm(f"{layer}.{attention}.output.LayerNorm", D)
    shapes.linear(f"{layer}.intermediate.dense", 4 * D, D)
    shapes.linear(f"{layer}.output.dense", D, 4 * D)
    shapes.norm(f"{layer}.output.LayerNorm", D)


def add_head(
    shapes: Shapes, head: str, D: int, V: int, side: int, patch: int, decoder: int
) -> None:
    if head == "pairs":
        shapes.linear("mlm_head.transform.dense", D, D)
        shapes.norm("mlm_head.transform.LayerNorm", D)
        shapes |= {"mlm_head.decoder.weight": (V, D), "mlm_head.bias": (V,)}
        shapes.linear("mim_head.decoder_embed", decoder, D)
        shapes |= {
            "mim_head.mask_token": (1, 1, decoder),
            "mim_head.decoder_pos_embed": (1, side**2 + 1, decoder),
        }
        clip_blocks(shapes, "mim_head.decoder", 4, decoder)
        shapes.norm("mim_head.decoder_norm", decoder)
        shapes.linear("mim_head.decoder_pred", 3 * patch**2, decoder)
    if head in ("pairs", "irtr"):
        shapes.linear("itm_head.fc", 2, 2 * D)
    if head == "irtr":
        shapes.linear("irtr_head", 1, 2 * D)
    if head in ("vqa", "cls"):
        shapes.linear(f"{head}_head.0", 2 * D, 2 * D)
        shapes.norm(f"{head}_head.1", 2 * D)
        shapes.linear(f"{head}_head.3", LABELS, 2 * D)


def shapes_of(
    head: str,
    *,
    D: int = D,
    depths: tuple[int, int, int] = DEPTHS,
    side: int = SIDE,
    patch: int = PATCH,
    V: int = NUM_WORDS,
    places: int = PLACES,
    texts: int = 16,
    decoder: int = 16,
) -> Shapes:
    """The names and shapes of a checkpoint, as the code of zhjohnchan/M3AE builds them with clip16
    and text_roberta."""
    shapes = Shapes()
    clip = "vision_encoder"
    visual = "vision_encoder.visual"
    roberta = "language_encoder"
    shapes |= {
        f"{clip}.positional_embedding": (77, texts),
        f"{clip}.token_embedding.weight": (100, texts),
    }
    shapes.norm(f"{clip}.ln_final", texts)
    shapes |= {
        f"{visual}.class_embedding": (D,),
        f"{visual}.positional_embedding": (side**2 + 1, D),
    }
    shapes[f"{visual}.conv1.weight"] = (D, 3, patch, patch)
    shapes.norm(f"{visual}.ln_pre", D)
    clip_blocks(shapes, f"{visual}.transformer", depths[0], D)
    shapes.norm(f"{visual}.ln_post", D)
    shapes[f"{roberta}.embeddings.position_ids"] = (1, places)
    for name, rows in (("word", V), ("position", places), ("token_type", 1)):
        shapes[f"{roberta}.embeddings.{name}_embeddings.weight"] = (rows, D)
    shapes.norm(f"{roberta}.embeddings.LayerNorm", D)
    for number in range(depths[1]):
        bert_layer(shapes, D, f"{roberta}.encoder.layer.{number}", "attention")
    shapes.linear(f"{roberta}.pooler.dense", D, D)
    shapes["modality_type_embeddings.weight"] = (2, D)
    for name in ("language", "vision"):
        shapes.linear(f"multi_modal_{name}_proj", D, D)
        for number in range(depths[2]):
            bert_layer(
                shapes, D, f"multi_modal_{name}_layers.{number}", "attention", "crossattention"
            )
        shapes.linear(f"multi_modal_{name}_pooler.dense", D, D)
    add_head(shapes, head, D, V, side, patch, decoder)
    return shapes


def checkpoint(head: str) -> dict[str, Tensor]:
    """A tiny one, of weights that are nowhere 0 or 1; embeddings that are small, so that the norm's
    eps counts."""
    torch.manual_seed(len(head))
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes_of(head).items():
        is_factor = len(shape) == 1 and name.endswith(".weight")
        is_small = "embedding" in name and not is_factor and not name.endswith("bias")
        tensors[name] = torch.randn(shape) * (0.002 if is_small else 0.2) + float(is_factor)
    tensors["vision_encoder.visual.conv1.weight"] *= 0.01
    return tensors | {"language_encoder.embeddings.position_ids": torch.arange(PLACES)[None]}


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    """A tokenizer.json as RoBERTa's: bytes, four special tokens first and <mask> last."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_WORDS - 1, special_tokens=special, initial_alphabet=letters
    )
    backend.train_from_iterator(["a chest x-ray with a small nodule in the left lung"] * 3, trainer)
    backend.add_special_tokens(["<mask>"])
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    assert backend.get_vocab_size() == NUM_WORDS
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    path.write_text(backend.to_str())
    return path


class Slow:
    """M3AE's forward pass for one sample, by the names of its code."""

    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors = tensors

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
        return x * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }

    def attention(self, x_ND: Tensor, other_MD: Tensor, name: str) -> Tensor:
        """BERT's, whose queries, keys and values all have biases."""
        parts = [(x_ND, "query"), (other_MD, "key"), (other_MD, "value")]
        q, k, v = (
            self.linear(x, f"{name}.self.{part}").unflatten(1, (HEADS, -1)).transpose(0, 1)
            for x, part in parts
        )
        weights = (q @ k.transpose(1, 2) / math.sqrt(D // HEADS)).softmax(2)
        return self.linear((weights @ v).transpose(0, 1).flatten(1), f"{name}.output.dense")

    def bert_layer(
        self, x_ND: Tensor, layer: str, eps: float, other_MD: Tensor | None = None
    ) -> Tensor:
        x_ND = self.norm(
            x_ND + self.attention(x_ND, x_ND, f"{layer}.attention"),
            f"{layer}.attention.output.LayerNorm",
            eps,
        )
        if other_MD is not None:
            branch = self.attention(x_ND, other_MD, f"{layer}.crossattention")
            cross = f"{layer}.crossattention.output"
            x_ND = self.norm(x_ND + branch, f"{cross}.LayerNorm", eps)
        hidden = F.gelu(self.linear(x_ND, f"{layer}.intermediate.dense"))
        return self.norm(
            x_ND + self.linear(hidden, f"{layer}.output.dense"), f"{layer}.output.LayerNorm", eps
        )

    def text(self, ids_T: Tensor) -> Tensor:
        of = "language_encoder.embeddings"
        x_TD = (
            self.tensors[f"{of}.word_embeddings.weight"][ids_T]
            + self.tensors[f"{of}.token_type_embeddings.weight"][0]
        )
        x_TD = x_TD + self.tensors[f"{of}.position_embeddings.weight"][2 : 2 + len(ids_T)]
        x_TD = self.norm(x_TD, f"{of}.LayerNorm", 1e-5)
        for number in range(DEPTHS[1]):
            x_TD = self.bert_layer(x_TD, f"language_encoder.encoder.layer.{number}", 1e-5)
        return x_TD

    def image(self, pixels_CHW: Tensor) -> Tensor:
        """Of pixels in [0, 1]."""
        of = "vision_encoder.visual"
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
        normal = (pixels_CHW - mean[:, None, None]) / std[:, None, None]
        grid = F.conv2d(normal[None], self.tensors[f"{of}.conv1.weight"], stride=PATCH)[0]
        x_PD = torch.cat([self.tensors[f"{of}.class_embedding"][None], grid.flatten(1).T])
        x_PD = self.norm(x_PD + self.tensors[f"{of}.positional_embedding"], f"{of}.ln_pre", 1e-5)
        for number in range(DEPTHS[0]):
            block = f"{of}.transformer.resblocks.{number}"
            attention = nn.MultiheadAttention(D, HEADS)
            attention.load_state_dict(self.under(f"{block}.attn."))
            normed = self.norm(x_PD, f"{block}.ln_1", 1e-5)
            x_PD = x_PD + attention(normed, normed, normed)[0]
            hidden = self.linear(self.norm(x_PD, f"{block}.ln_2", 1e-5), f"{block}.mlp.c_fc")
            x_PD = x_PD + self.linear(hidden * torch.sigmoid(1.702 * hidden), f"{block}.mlp.c_proj")
        return self.norm(x_PD, f"{of}.ln_post", 1e-5)

    def pair(self, ids_T: Tensor, pixels_CHW: Tensor) -> tuple[Tensor, Tensor]:
        """States of the text and of the image, each of which sees the other as it was before the
        layer."""
        text, image = self.tensors["modality_type_embeddings.weight"]
        x_TD = self.linear(self.text(ids_T), "multi_modal_language_proj") + text
        y_PD = self.linear(self.image(pixels_CHW), "multi_modal_vision_proj") + image
        for number in range(DEPTHS[2]):
            text_layer = f"multi_modal_language_layers.{number}"
            image_layer = f"multi_modal_vision_layers.{number}"
            new_x_TD = self.bert_layer(x_TD, text_layer, 1e-12, y_PD)
            y_PD = self.bert_layer(y_PD, image_layer, 1e-12, x_TD)
            x_TD = new_x_TD
        return x_TD, y_PD

    def pooled(self, ids_T: Tensor, pixels_CHW: Tensor) -> Tensor:
        states = zip(self.pair(ids_T, pixels_CHW), ("language", "vision"), strict=True)
        return torch.cat(
            [self.linear(x[0], f"multi_modal_{name}_pooler.dense").tanh() for x, name in states]
        )

    def words(self, x_TD: Tensor) -> Tensor:
        hidden = F.gelu(self.linear(x_TD, "mlm_head.transform.dense"))
        hidden = self.norm(hidden, "mlm_head.transform.LayerNorm", 1e-12)
        return hidden @ self.tensors["mlm_head.decoder.weight"].T + self.tensors["mlm_head.bias"]

    def classes(self, x: Tensor, name: str) -> Tensor:
        return self.linear(
            F.gelu(self.norm(self.linear(x, f"{name}.0"), f"{name}.1", 1e-5)), f"{name}.3"
        )


def converted(eve, tmp_path: Path, tensors: dict[str, Tensor], words: Path, *flags: Any) -> Any:
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "m3ae.ckpt")
    done = eve("convert", "m3ae.ckpt", "run", "--tokenizer", words, "--num-heads", HEADS, *flags)
    assert done.returncode == 0, done.stderr
    left_out = any(name.startswith("mim_head") for name in tensors)
    assert done.stdout.count("left out the decoder of pixels") == left_out
    return load_run(tmp_path / "run")


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """uint8 images, ids and padding; the second text is shorter."""
    torch.manual_seed(1)
    images = torch.randint(256, (2, 3, SIDE * PATCH, SIDE * PATCH), dtype=torch.uint8)
    ids = torch.tensor([[0, 7, 9, 30, 11, 2], [0, 40, 8, 2, 1, 1]])
    return images, ids, ids == 1


def near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_what_pre_training_taught_gives_the_numbers_of_its_own_code(eve, tmp_path, words):
    """States of towers and pairs, words and matching; texts of any length, padded or not."""
    tensors = checkpoint("pairs")
    run = converted(eve, tmp_path, tensors, words)
    task = run.task
    slow = Slow(tensors)
    assert (run.config.task.name, run.config.task.mim_weight, run.config.input.text_length) == (
        "contrast_match",
        0,
        18,
    )
    images, ids, is_padding = inputs()
    image = task.encoder.image(images.float() / 127.5 - 1)
    text = task.encoder.text(ids, is_padding)
    encoded = task.encoder.encode(image, text)
    pooled, _ = task.encoder.cls(image, text)
    alone = task.encoder.encode(image, None), task.encoder.encode(None, text)
    match = task.match(images, ids, is_padding)[0]
    for row in range(2):
        real = ids[row][~is_padding[row]]
        pixels = images[row] / 255
        near(alone[0].x_BND[row], slow.image(pixels))
        near(alone[1].x_BND[row, : len(real)], slow.text(real))
        x_TD, y_PD = slow.pair(real, pixels)
        near(encoded.text_BTD[row, : len(real)], x_TD)
        near(encoded.x_BND[row, : SIDE**2 + 1], y_PD)
        near(pooled[row], slow.pooled(real, pixels))
        near(task.token_head(encoded.text_BTD[row, : len(real)]), slow.words(x_TD))
        near(match[row], slow.linear(slow.pooled(real, pixels), "itm_head.fc"))
    norms = {
        name: part.eps for name, part in task.named_modules() if isinstance(part, nn.LayerNorm)
    }
    assert {eps for name, eps in norms.items() if ".image." in name and "fusion" not in name} == {
        1e-5
    }
    assert {eps for name, eps in norms.items() if "encoder.text" in name} == {1e-5}
    assert {eps for name, eps in norms.items() if "fusion" in name or "token_head" in name} == {
        1e-12
    }


@torch.no_grad()
def test_the_slow_text_tower_is_roberta():
    slow = Slow(checkpoint(""))
    _, ids, is_padding = inputs()
    config = RobertaConfig(
        hidden_size=D,
        num_hidden_layers=DEPTHS[1],
        num_attention_heads=HEADS,
        intermediate_size=4 * D,
        vocab_size=NUM_WORDS,
        max_position_embeddings=PLACES,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    roberta = RobertaModel(config).eval()
    assert not roberta.load_state_dict(slow.under("language_encoder."), strict=False).missing_keys
    states = roberta(input_ids=ids, attention_mask=(~is_padding).long()).last_hidden_state
    for row in range(2):
        real = ids[row][~is_padding[row]]
        near(slow.text(real), states[row, : len(real)])


@pytest.mark.parametrize("head", ["vqa", "cls", "irtr"])
@torch.no_grad()
def test_what_was_fine_tuned_answers_as_its_own_code_does(eve, tmp_path, words, head):
    tensors = checkpoint(head)
    flags = []
    if head != "irtr":
        (tmp_path / "labels.txt").write_text(
            "\n".join(f"label {number}" for number in range(LABELS))
        )
        flags = ["--answers", "labels.txt"]
    run = converted(eve, tmp_path, tensors, words, *flags)
    slow = Slow(tensors)
    assert run.config.task.name == HEADS_OF[head]
    images, ids, is_padding = inputs()
    logits = (run.task.match if head == "irtr" else run.task.logits)(images, ids, is_padding)[0]
    for row in range(2):
        pooled = slow.pooled(ids[row][~is_padding[row]], images[row] / 255)
        if head == "irtr":
            near(logits[row, 1:], slow.linear(pooled, "irtr_head"))
        else:
            near(logits[row], slow.classes(pooled, f"{head}_head"))


def test_positions_are_resized_and_texts_cut_and_people_can_ask(eve, tmp_path, words):
    run = converted(
        eve, tmp_path, checkpoint("pairs"), words, "--image-size", 20, "--text-tokens", 8
    )
    assert (run.config.input.image_size, run.config.input.text_length) == (20, 8)
    places = run.task.get_parameter("encoder.text.embed.positions")
    theirs = checkpoint("pairs")
    assert torch.equal(
        places, theirs["language_encoder.embeddings.position_embeddings.weight"][2:10]
    )
    grid = theirs["vision_encoder.visual.positional_embedding"][1:].T.view(1, D, SIDE, SIDE)
    positions = run.task.get_parameter("encoder.image.embed.positions")[1:]
    torch.testing.assert_close(
        positions, F.interpolate(grid, (5, 5), mode="bicubic")[0].flatten(1).T
    )
    person = Eve.load(tmp_path / "run")
    assert len(person.fill_mask(torch.zeros(3, 30, 20), "a [MASK] lung", top=2).guesses[0]) == 2  # pyright: ignore
    assert "reconstruct" not in person.calls


@pytest.mark.parametrize("verb", ["pretrain m3ae_base", "finetune m3ae_tiny_vqa"])
def test_training_goes_on_from_it(eve, tmp_path, words, verb, no_report):
    """Pre-training's decoder of pixels is new; towers keep their blocks."""
    run = converted(
        eve, tmp_path, checkpoint("pairs"), words, "--text-tokens", 0, "--image-size", 16
    )
    data = [
        "--data.train",
        "phantoms:train",
        "--data.val",
        "phantoms:val",
        "--data.val-samples",
        2,
        "--data.num-workers",
        0,
    ]
    steps = ["--train.steps", 1, "--train.batch-size", 2, "--train.accumulation", 1]
    sizes = (
        ["--input.image-size", 16, "--input.text-length", 18] if verb.startswith("pretrain") else []
    )
    done = eve(*verb.split(), "--init", "run", "--out", "more", *data, *steps, *sizes)
    assert done.returncode == 0, done.stderr
    assert load_run(tmp_path / "more").config.model == run.config.model


@pytest.mark.parametrize("head", HEADS_OF)
@pytest.mark.parametrize(("patch", "side"), [(16, 18), (16, 24), (32, 9)])
def test_full_sizes_have_a_place_for_each_tensor(head, patch, side):
    sizes_of: dict[str, Any] = {
        "D": 768,
        "depths": (11, 12, 6),
        "V": 50_265,
        "places": 514,
        "texts": 512,
        "decoder": 384,
    }
    shapes = shapes_of(head, **sizes_of, patch=patch, side=side)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    sizes, model, section = m3ae.infer(tensors, "file")
    assert (sizes.image_size, sizes.text_length, model.num_heads) == (patch * side, 512, 12)
    assert isinstance(m3ae.BASE.model, M3aeModelConfig)
    assert model == replace(m3ae.BASE.model, towers="clip_roberta")
    plan = Conversion(
        tensors=tensors,
        sizes=sizes,
        model=model,
        section=section,
        recipe="m3ae_base",
        finetune_prefix="m3ae_",
        unused="",
    )
    config = config_for(plan, Path("run"), "file")
    assert config.task.name == HEADS_OF[head]
    with torch.device("meta"):
        state = build_untrained(
            config, Sizes(vocab_size=50_265, labels=("",) * LABELS)
        ).state_dict()
        table = resolve(m3ae.key_table(section), state)
        assert table.keys() == state.keys()
        for name, computed in table.items():
            assert (
                convert_tensor(name, computed, tensors, state[name], "file").shape
                == state[name].shape
            )
    unused = {name for name in tensors if re.match(m3ae.UNUSED, name)}
    unused |= {name for name in tensors if head == "irtr" and name.startswith("itm_head.")}
    assert {
        name for computed in table.values() for name in computed.sources
    } == tensors.keys() - unused


PROJ = "multi_modal_language_proj.weight"
SEGMENT = "language_encoder.embeddings.token_type_embeddings.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"itm_head.fc.bias": None}, "m3ae.ckpt: 1 missing: itm_head.fc.bias"),
        ({"decoder.weight": (2, 2), "irtr_head.bias": (1,)}, "unknown: decoder.weight"),
        (
            {PROJ: (D, 48)},
            f"m3ae.ckpt: {PROJ} has shape (32, 48), but the other tensors ask for (32, 32)",
        ),  # large RoBERTa
        (
            {SEGMENT: (2, D)},
            f"{SEGMENT} has shape (2, 32), but encoder.text.embed.words.weight needs (270, 32)",
        ),  # BERT
        (
            {"vision_encoder.visual.conv1.weight": None},
            "not an M3AE checkpoint ('vision_encoder.visual.conv1.weight' is missing or unusual)",
        ),
        (
            {"vision_encoder.visual.positional_embedding": (11, D)},
            "11 image positions are no [CLS] and a square of patches",
        ),
        (
            {"vision_encoder.visual.transformer.resblocks.4.ln_1.bias": (D,)},
            "1 unknown: vision_encoder.visual.transformer.resblocks.4.ln_1.bias",
        ),
        (
            {"multi_modal_vision_layers.1.output.dense.bias": None},
            "1 missing: multi_modal_vision_layers.1.output.dense.bias",
        ),
        (
            {"language_encoder.embeddings.word_embeddings.weight": (60, D)},
            "but the checkpoint has embeddings for 60",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(eve, tmp_path, words, change, message):
    tensors = checkpoint("pairs")
    for name, shape in change.items():
        tensors.pop(name, None)
        tensors |= {} if shape is None else {name: torch.zeros(shape)}
    torch.save({"state_dict": tensors}, tmp_path / "m3ae.ckpt")
    done = eve("convert", "m3ae.ckpt", "run", "--tokenizer", words, "--num-heads", HEADS)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "run").exists()
