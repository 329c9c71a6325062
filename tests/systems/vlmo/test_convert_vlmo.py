"""Published VLMo checkpoints, tiny and at full size, against a slow forward pass.

Letters: T text tokens, N all tokens, D width, H heads, L blocks.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.interop.convert import Conversion, config_for
from eve_vl.interop.weight_table import convert_tensor, resolve
from eve_vl.run.loading import build_untrained, load_run
from eve_vl.systems.vlmo import convert as vlmo
from eve_vl.tasks.task import Sizes
from helpers.twins import Shapes
from helpers.vlmo import slow_row

pytestmark = pytest.mark.usefixtures("no_report")

D = 32
DEPTH = 3
HEADS = 2
PATCH = 4
SIDE = 2
NUM_WORDS = 61
KINDS = ("relative", "learned")
SHAPES = {
    "base": {"D": 768, "depth": 12, "heads": 12, "top": 2, "side": 14},
    "base_plus": {"D": 544, "depth": 24, "heads": 16, "top": 3, "side": 14, "is_relative": False},
    "large": {"D": 1024, "depth": 24, "heads": 16, "top": 3, "side": 24},
}
ANSWERS = 5


def shapes_of(
    head: str,
    *,
    D: int = D,
    depth: int = DEPTH,
    heads: int = HEADS,
    top: int = 1,
    side: int = SIDE,
    patch: int = PATCH,
    V: int = NUM_WORDS,
    is_relative: bool = True,
) -> Shapes:
    """The names and shapes of a checkpoint, as the code of microsoft/unilm's vlmo builds them."""
    shapes = Shapes()

    shapes["transformer.cls_token"] = (1, 1, D)
    shapes |= {
        "transformer.patch_embed.proj.weight": (D, 3, patch, patch),
        "transformer.patch_embed.proj.bias": (D,),
    }
    for number in range(depth):
        block = f"transformer.blocks.{number}"
        shapes.norm(f"{block}.norm1", D)
        shapes |= {
            f"{block}.attn.qkv.weight": (3 * D, D),
            f"{block}.attn.q_bias": (D,),
            f"{block}.attn.v_bias": (D,),
        }
        shapes.linear(f"{block}.attn.proj", D, D)
        kinds = ["text", "imag"]
        if number >= depth - top and head != "texts":
            kinds.append("vl")
        for kind in kinds:
            shapes.norm(f"{block}.norm2_{kind}", D)
            shapes.linear(f"{block}.mlp_{kind}.fc1", 4 * D, D)
            shapes.linear(f"{block}.mlp_{kind}.fc2", D, 4 * D)
        if is_relative:
            shapes |= {f"{block}.gamma_1": (D,), f"{block}.gamma_2": (D,)}
    shapes.norm("transformer.norm", D)
    if is_relative:
        shapes["relative_position_bias_table"] = (
            (2 * side - 1) ** 2 + 3 + 2 * 196 + 2,
            heads * depth,
        )
        shapes |= {
            "relative_position_index": (side**2 + 1,) * 2,
            "text_relative_position_index": (40, 40),
        }
    else:
        shapes["transformer.pos_embed"] = (1, side**2 + 1, D)
    words = "text_embeddings"
    shapes |= {f"{words}.position_ids": (1, 40), f"{words}.word_embeddings.weight": (V, D)}
    shapes |= {
        f"{words}.position_embeddings.weight": (40, D),
        f"{words}.token_type_embeddings.weight": (2, D),
    }
    shapes.norm(f"{words}.LayerNorm", D)
    shapes["token_type_embeddings.weight"] = (3 if head == "nlvr2" else 2, D)
    shapes.linear("pooler.dense", D, D)
    if head in ("pairs", "texts"):
        shapes.linear("mlm_score.transform.dense", D, D)
        shapes.norm("mlm_score.transform.LayerNorm", D)
        shapes |= {"mlm_score.decoder.weight": (V, D), "mlm_score.bias": (V,)}
    if head == "pairs":
        shapes.linear("itm_score.fc", 2, D)
        shapes |= {
            "itc_vl_text_proj.fc.weight": (D, D),
            "itc_vl_image_proj.fc.weight": (D, D),
            "logit_vl_scale": (),
        }
    if head in ("pairs", "retrieval"):
        shapes |= {
            "itc_text_proj.fc.weight": (D, D),
            "itc_image_proj.fc.weight": (D, D),
            "logit_scale": (),
        }
    if head in ("vqa", "nlvr2"):
        shapes.linear(f"{head}_classifier.0", 2 * D, D if head == "vqa" else 2 * D)
        shapes.norm(f"{head}_classifier.1", 2 * D)
        shapes.linear(f"{head}_classifier.3", ANSWERS if head == "vqa" else 2, 2 * D)
    return shapes


def checkpoint(head: str, kind: str = "relative") -> dict[str, Tensor]:
    """A tiny one, of weights that are nowhere 0 or 1; words that are small, so that the norm's eps
    counts."""
    torch.manual_seed(len(head))
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes_of(head, is_relative=kind == "relative").items():
        if name.endswith(("_index", "_ids")):
            tensors[name] = torch.zeros(shape, dtype=torch.int64)
        else:
            is_factor = (len(shape) == 1 and name.endswith("weight")) or "gamma" in name
            scale = 0.002 if name.startswith("text_embeddings") and len(shape) == 2 else 0.2
            tensors[name] = torch.randn(shape) * scale + float(is_factor)
    return tensors | {
        name: torch.tensor(math.log(1 / 0.07)) + tensors[name]
        for name in tensors
        if name.startswith("logit")
    }


@pytest.fixture(scope="module")
def vocab(tmp_path_factory) -> Path:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text(
        "\n".join(
            [*special, "is", "it", "red", *(f"word{number}" for number in range(NUM_WORDS - 8))]
        )
        + "\n"
    )
    return path


class Slow:
    """VLMo's forward pass for one sample, [text; image], by the names of its code."""

    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors = tensors

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.tensors[f"{name}.weight"].T + self.tensors.get(f"{name}.bias", 0.0)

    def norm(self, x: Tensor, name: str, eps: float = 1e-6) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
        return x * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def text(self, ids_T: Tensor) -> Tensor:
        of = "text_embeddings"
        x_TD = (
            self.tensors[f"{of}.word_embeddings.weight"][ids_T]
            + self.tensors[f"{of}.token_type_embeddings.weight"][0]
        )
        if "transformer.pos_embed" in self.tensors:
            x_TD = x_TD + self.tensors[f"{of}.position_embeddings.weight"][: len(ids_T)]
        return (
            self.norm(x_TD, f"{of}.LayerNorm", 1e-12)
            + self.tensors["token_type_embeddings.weight"][0]
        )

    def image(self, pixels_CHW: Tensor, kind: int = 1) -> Tensor:
        of = "transformer.patch_embed.proj"
        grid = F.conv2d(
            pixels_CHW[None], self.tensors[f"{of}.weight"], self.tensors[f"{of}.bias"], stride=PATCH
        )
        x_ND = torch.cat([self.tensors["transformer.cls_token"][0], grid[0].flatten(1).T])
        if "transformer.pos_embed" in self.tensors:
            x_ND = x_ND + self.tensors["transformer.pos_embed"][0]
        return x_ND + self.tensors["token_type_embeddings.weight"][kind]

    def bias(self, T: int, P: int, block: int, head: int) -> Tensor:
        table = self.tensors.get("relative_position_bias_table")
        words: list[tuple[Any, ...]] = [("cls", "text"), *(("word", t) for t in range(1, T))][:T]
        places = [*words, *[("cls", "image"), *(("patch", p) for p in range(P - 1))][:P]]
        if table is None:
            return torch.zeros(T + P, T + P)
        rows = torch.tensor(
            [[slow_row(query, key, SIDE, 196) for key in places] for query in places]
        )
        return table[rows, block * HEADS + head]

    def blocks(
        self,
        text_TD: Tensor,
        image_ND: Tensor,
        networks: tuple[str, str],
        start: int = 0,
        stop: int = DEPTH,
    ) -> Tensor:
        """networks: which the top block has for words and for patches; below, each has its own."""
        T = len(text_TD)
        x_ND = torch.cat([text_TD, image_ND])
        for number in range(start, stop):
            of = f"transformer.blocks.{number}"
            normed = self.norm(x_ND, f"{of}.norm1")
            zeros = torch.zeros(D)
            biases = [self.tensors[f"{of}.attn.q_bias"], zeros, self.tensors[f"{of}.attn.v_bias"]]
            q, k, v = (normed @ self.tensors[f"{of}.attn.qkv.weight"].T + torch.cat(biases)).split(
                D, dim=1
            )
            heads = []
            for head in range(HEADS):
                part = slice(head * D // HEADS, (head + 1) * D // HEADS)
                scores = q[:, part] @ k[:, part].T / math.sqrt(D // HEADS) + self.bias(
                    T, len(image_ND), number, head
                )
                heads.append(scores.softmax(1) @ v[:, part])
            x_ND = x_ND + self.tensors.get(f"{of}.gamma_1", 1.0) * self.linear(
                torch.cat(heads, dim=1), f"{of}.attn.proj"
            )
            kinds = networks if number == DEPTH - 1 else ("text", "imag")
            parts = []
            for kind, x in zip(kinds, (x_ND[:T], x_ND[T:]), strict=True):
                hidden = F.gelu(
                    self.linear(self.norm(x, f"{of}.norm2_{kind}"), f"{of}.mlp_{kind}.fc1")
                )
                parts.append(self.linear(hidden, f"{of}.mlp_{kind}.fc2"))
            x_ND = x_ND + self.tensors.get(f"{of}.gamma_2", 1.0) * torch.cat(parts)
        return x_ND

    def pair(self, ids_T: Tensor, pixels_CHW: Tensor, kind: int = 1) -> Tensor:
        return self.norm(
            self.blocks(self.text(ids_T), self.image(pixels_CHW, kind), ("vl", "vl")),
            "transformer.norm",
        )

    def pooled(self, ids_T: Tensor, pixels_CHW: Tensor, kind: int = 1) -> Tensor:
        return self.linear(self.pair(ids_T, pixels_CHW, kind)[0], "pooler.dense").tanh()

    def features(
        self, ids_T: Tensor, pixels_CHW: Tensor, *, by_pairs: bool
    ) -> tuple[Tensor, Tensor]:
        """Of an image and of a text, each alone."""
        nothing = torch.zeros(0, D)
        vl = "vl_" * by_pairs
        states = (
            self.blocks(nothing, self.image(pixels_CHW), ("text", "vl" if by_pairs else "imag")),
            self.blocks(self.text(ids_T), nothing, ("vl" if by_pairs else "text", "imag")),
        )
        cls = [self.norm(x_ND[0], "transformer.norm") for x_ND in states]
        image, text = (
            self.linear(x, f"itc_{vl}{name}_proj.fc")
            for x, name in zip(cls, ("image", "text"), strict=True)
        )
        return image / image.norm(), text / text.norm()

    def words(self, x_TD: Tensor) -> Tensor:
        hidden = self.norm(
            F.gelu(self.linear(x_TD, "mlm_score.transform.dense")),
            "mlm_score.transform.LayerNorm",
            1e-12,
        )
        return hidden @ self.tensors["mlm_score.decoder.weight"].T + self.tensors["mlm_score.bias"]

    def classes(self, x: Tensor, name: str) -> Tensor:
        return self.linear(
            F.gelu(self.norm(self.linear(x, f"{name}.0"), f"{name}.1", 1e-5)), f"{name}.3"
        )


def converted(eve, tmp_path: Path, tensors: dict[str, Tensor], vocab: Path, *flags: Any) -> Any:
    torch.save(
        {"module": {f"module.{name}": tensor for name, tensor in tensors.items()}},
        tmp_path / "vlmo.pt",
    )
    done = eve("convert", "vlmo.pt", "run", "--tokenizer", vocab, "--num-heads", HEADS, *flags)
    assert done.returncode == 0, done.stderr
    return load_run(tmp_path / "run")


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """uint8 images, the same in [-1, 1], ids and padding; the second text is shorter."""
    torch.manual_seed(1)
    images = torch.randint(256, (2, 3, SIDE * PATCH, SIDE * PATCH), dtype=torch.uint8)
    ids = torch.tensor([[2, 7, 9, 30, 11, 3], [2, 40, 8, 3, 0, 0]])
    return images, images.float() / 127.5 - 1, ids, ids == 0


def near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_pairs_taught_gives_the_numbers_of_its_own_code(eve, tmp_path, vocab, kind):
    """States, words, matching and both contrasts; texts of any length, padded or not."""
    tensors = checkpoint("pairs", kind)
    run = converted(eve, tmp_path, tensors, vocab)
    assert (run.config.task.name, run.config.input.text_length, run.config.model.positions) == (
        "contrast_match",
        40,
        kind,
    )
    task = run.task
    slow = Slow(tensors)
    images, pixels, ids, is_padding = inputs()
    image = task.encoder.image(pixels)
    text = task.encoder.text(ids, is_padding)
    encoded = task.encoder.encode(image, text)
    match = task.match(images, ids, is_padding)[0]
    unimodal = task.contrast.unimodal(task.encoder, FakeBatch(pixels, ids, is_padding))
    features = (unimodal.image_BXd, unimodal.text_BXd)
    for row in range(2):
        real = ids[row][~is_padding[row]]
        expected = slow.pair(real, pixels[row])
        T = len(real)
        near(encoded.text_BTD[row, :T], expected[:T])
        near(encoded.x_BND[row, : SIDE**2 + 1], expected[T:])
        near(task.token_head(encoded.text_BTD[row, :T]), slow.words(expected[:T]))
        near(match[row], slow.linear(slow.pooled(real, pixels[row]), "itm_score.fc"))
        for contrast in range(2):
            for actual, expected_feature in zip(
                features, slow.features(real, pixels[row], by_pairs=contrast == 1), strict=True
            ):
                near(actual[row, contrast], expected_feature)
    for head, name in zip(task.contrast.heads, ("logit_scale", "logit_vl_scale"), strict=True):
        near(1 / head.temperature, tensors[name].exp())


class FakeBatch:
    """What contrast reads of a batch."""

    num_real = None

    def __init__(self, pixels: Tensor, ids: Tensor, is_padding: Tensor):
        self.own = pixels
        self.ids_BT = ids
        self.is_padding_BT = is_padding

    def pixels(self) -> Tensor:
        return self.own


@pytest.mark.parametrize("head", ["vqa", "nlvr2", "retrieval"])
@torch.no_grad()
def test_what_was_fine_tuned_answers_as_its_own_code_does(eve, tmp_path, vocab, head):
    tensors = checkpoint(head)
    (tmp_path / "answers.txt").write_text(
        "\n".join(f"answer {number}" for number in range(ANSWERS))
    )
    flags = ["--answers", "answers.txt"] if head == "vqa" else []
    task = converted(eve, tmp_path, tensors, vocab, *flags).task
    slow = Slow(tensors)
    images, pixels, ids, is_padding = inputs()
    for row in range(2):
        real = ids[row][~is_padding[row]]
        image = images[row : row + 1]
        text = (ids[row : row + 1], is_padding[row : row + 1])
        if head == "vqa":
            near(
                task.logits(image, *text)[0][0],
                slow.classes(slow.pooled(real, pixels[row]), "vqa_classifier"),
            )
        elif head == "nlvr2":
            states = [slow.pooled(real, pixels[row]), slow.pooled(real, pixels[1 - row], kind=2)]
            actual = task.logits(image, images[1 - row : 2 - row], *text)[0][0]
            near(actual, slow.classes(torch.cat(states), "nlvr2_classifier"))
        else:
            actual = task.image_features(image)[0], task.text_features(*text)[0]
            for ours, theirs in zip(
                actual, slow.features(real, pixels[row], by_pairs=False), strict=True
            ):
                near(ours, theirs)


def test_the_stage_of_texts_is_a_start_for_pairs_with_networks_that_it_lacks(eve, tmp_path, vocab):
    tensors = checkpoint("texts")
    run = converted(eve, tmp_path, tensors, vocab, "--text-tokens", 0, "--image-size", 16)
    assert (run.config.recipe, run.config.task.name, run.config.data.modality) == (
        "published",
        "masked_signal",
        "text",
    )
    assert (run.config.input.image_size, run.config.input.text_length) == (16, 196)
    _, _, ids, is_padding = inputs()
    with torch.no_grad():
        encoded = run.task.encoder.encode(None, run.task.encoder.text(ids, is_padding))
        slow = Slow(tensors)
        expected = slow.norm(
            slow.blocks(slow.text(ids[0]), torch.zeros(0, D), ("text", "imag")), "transformer.norm"
        )
        near(run.task.token_head(encoded.x_BND[0]), slow.words(expected))
    assert run.config.model.ffn_policies == (
        "modality",
        "modality_vl",
        "modality_vl",
    )  # as many as in VLMo-Base
    assert 0.015 < run.task.get_parameter("encoder.blocks.2.ffn.vl.fc1.weight").std() < 0.025
    sizes = [
        "--input.text-length",
        40,
        "--train.steps",
        1,
        "--train.batch-size",
        2,
        "--train.accumulation",
        1,
    ]
    data = [
        "--data.train",
        "scenes:train",
        "--data.val",
        "scenes:val",
        "--data.val-samples",
        2,
        "--data.num-workers",
        0,
    ]
    done = eve(
        "pretrain",
        "vlmo_base",
        "--init",
        "run",
        "--out",
        "pairs",
        *sizes,
        *data,
        "--input.image-size",
        16,
    )
    assert done.returncode == 0, done.stderr
    assert load_run(tmp_path / "pairs").config.model == run.config.model


def test_fine_tuning_starts_from_it(eve, tmp_path, vocab):
    run = converted(eve, tmp_path, checkpoint("pairs"), vocab, "--image-size", 16)
    assert vars(run.config.model)["text_embedding"] == "bert"
    steps = [
        "--train.steps",
        1,
        "--train.batch-size",
        2,
        "--data.val-samples",
        2,
        "--data.num-workers",
        0,
    ]
    data = ["--data.train", "scenes:train", "--data.val", "scenes:val"]
    done = eve("finetune", "vlmo_retrieval", "--init", "run", "--out", "tuned", *steps, *data)
    assert done.returncode == 0, done.stderr
    assert load_run(tmp_path / "tuned").config.model == replace(run.config.model, drop_path=0.2)  # pyright: ignore


@pytest.mark.parametrize("head", ["pairs", "vqa", "nlvr2", "retrieval", "texts"])
@pytest.mark.parametrize("size", SHAPES)
def test_full_sizes_have_a_place_for_each_tensor(size, head):
    shapes: dict[str, Any] = SHAPES[size]
    tensors = {
        name: torch.empty(shape, device="meta")
        for name, shape in shapes_of(head, **shapes, patch=16, V=30_522).items()
    }
    sizes, model, section, start = vlmo.infer(tensors, "file")
    suffix = "_texts" if head == "texts" else ""
    assert start == f"vlmo_{size}{suffix}"
    assert (model.num_heads, model.num_deep_blocks, sizes.image_size) == (
        shapes["heads"],
        shapes["top"],
        16 * shapes["side"],
    )
    assert sizes.text_length == (40 if size == "base_plus" else 196)
    plan = Conversion(
        tensors=tensors,
        sizes=sizes,
        model=model,
        section=section,
        recipe=start,
        finetune_prefix="vlmo_",
        unused="",
    )
    config = config_for(plan, Path("run"), "file")
    with torch.device("meta"):
        state = build_untrained(
            config, Sizes(vocab_size=30_522, labels=("",) * ANSWERS)
        ).state_dict()
        table = resolve(vlmo.key_table(tensors), state)
        for name, computed in table.items():
            assert (
                convert_tensor(name, computed, tensors, state[name], "file").shape
                == state[name].shape
            )
    assert table.keys() == {
        name for name in state if head != "texts" or (".vl." not in name and "norm_vl" not in name)
    }
    unused = {name for name in tensors if name.endswith(("_index", "_ids"))}
    unused |= {"text_embeddings.position_embeddings.weight"} if size != "base_plus" else set()
    assert {
        name for computed in table.values() for name in computed.sources
    } == tensors.keys() - unused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer.norm.bias": None}, "vlmo.pt: 1 missing: transformer.norm.bias"),
        (
            {"itm_score.fc.bias": None, "decoder.weight": (2, 2)},
            "1 unknown: decoder.weight; 1 missing: itm_score.fc.bias",
        ),
        (
            {"pooler.dense.weight": (D, 5)},
            "vlmo.pt: pooler.dense.weight has shape (32, 5), but the other tensors ask for (32, "
            "32)",
        ),
        (
            {"relative_position_bias_table": (400, 6)},
            "relative_position_bias_table has 400 rows, expected (2g - 1)² + 397",
        ),
        (
            {"relative_position_bias_table": (406, 7)},
            "relative_position_bias_table has shape (406, 7), but encoder.relative.image_bias "
            "needs (12, 6)",
        ),
        (
            {"token_type_embeddings.weight": (1, D)},
            "token_type_embeddings.weight has shape (1, 32), but encoder.image.type_embed needs "
            "(32,)",
        ),
        (
            {"transformer.blocks.0.mlp_imag.fc1.bias": None},
            "not a VLMo checkpoint ('transformer.blocks.0.mlp_imag.fc1.bias'",
        ),
        ({"transformer.blocks.4.norm1.bias": (D,)}, "missing: transformer.blocks.3.attn.proj.bias"),
        (
            {"transformer.blocks.0.mlp_vl.fc1.bias": (D,)},
            "1 unknown: transformer.blocks.0.mlp_vl.fc1.bias",
        ),
        (
            {"text_embeddings.word_embeddings.weight": (60, D)},
            "has 61 tokens, but the checkpoint has embeddings for 60",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(eve, tmp_path, vocab, change, message):
    tensors = checkpoint("pairs")
    for name, shape in change.items():
        tensors.pop(name, None)
        tensors |= {} if shape is None else {name: torch.zeros(shape)}
    torch.save({"state_dict": tensors}, tmp_path / "vlmo.pt")
    done = eve("convert", "vlmo.pt", "run", "--tokenizer", vocab)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
