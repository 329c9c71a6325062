"""MLIM against slow loops: separate pixel blocks, three kinds of masks, both losses."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.config.json_form import from_dict
from eve_vl.model.encoder import Encoder
from eve_vl.model.image_embedding import ImageEmbed
from eve_vl.model.stems import PatchConvStem
from eve_vl.model.text_embedding import TextEmbed
from eve_vl.model.tokens import Tokens
from eve_vl.systems.mlim.pretraining.config import MlimConfig
from eve_vl.systems.mlim.pretraining.decoder import ConvDecoder
from eve_vl.systems.mlim.pretraining.task import Mlim
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.utils.errors import UserError
from helpers.mlim import SIZES, build_mlim, mlim_config, mlim_rows

CONFIG = mlim_config()
SIDE = 48
PATCH = 16


def encoder_of(task: Mlim) -> Encoder:
    assert isinstance(task.encoder, Encoder)
    return task.encoder


def place_of(embed: ImageEmbed | TextEmbed, number: int) -> Tensor:
    """Return what is added to a token at a place: position and type."""
    assert embed.positions is not None
    return embed.positions[number] + embed.type_embed


def mask_word(encoder: Encoder) -> Tensor:
    return encoder.text.norm(encoder.text.words.weight[SIZES.mask_id])


def batch_of(num_rows: int, hides: str = "") -> Any:
    """Return a training batch, of rows that hide "image", "text", "both", or any of them ("")."""
    rows = mlim_rows(CONFIG)
    samples = [rows[0, 0, row] for row in range(num_rows)]
    return rows.collate([sample for sample in samples if hides in ("", sample.hides)])


@pytest.mark.parametrize(
    ("module", "count"),
    [
        (PatchConvStem(1024, 128), 196_080),
        (ConvDecoder(1024, 128), 2_763_123),
        (PatchConvStem(192, 16), 59_888),
    ],
)
def test_embedder_and_decoder_have_the_counted_parameters(module, count):
    assert sum(parameter.numel() for parameter in module.parameters()) == count


def test_hiding_a_token_hides_exactly_a_square_of_pixels():
    """MLIM's idea: a place of the embedder sees its own block, and a hidden one shows nothing."""
    encoder = encoder_of(build_mlim(CONFIG))
    pixels = torch.randn(1, 3, SIDE, SIDE, requires_grad=True)
    for k in range(9):
        word = torch.randn(1, 1, 16)
        tokens = encoder.image(pixels, replacement=(torch.tensor([[k]]), word))
        assert torch.allclose(tokens.x_BND[0, 1 + k], word[0, 0] + place_of(encoder.image, 1 + k))
        (gradient,) = torch.autograd.grad(tokens.x_BND.square().sum(), pixels)
        top = PATCH * (k // 3)
        left = PATCH * (k % 3)
        is_seen = torch.ones(SIDE, SIDE, dtype=torch.bool)
        is_seen[top : top + PATCH, left : left + PATCH] = False
        assert torch.equal((gradient != 0).any(1)[0], is_seen)


def test_hidden_patches_and_hidden_tokens_start_as_the_same_word():
    task = build_mlim(CONFIG)
    encoder = encoder_of(task)
    part = batch_of(9).both
    image, text = task.embed(part, keep=True, mask=True)
    assert image is not None
    word = mask_word(encoder)
    for row, hidden in enumerate(part.hidden_BM.tolist()):
        for k in hidden:
            place = place_of(encoder.image, 1 + k)
            assert torch.allclose(image.x_BND[row, 1 + k] - place, word, atol=1e-5)
    for row, t in part.is_masked_BT.nonzero().tolist():
        place = place_of(encoder.text, t)
        assert torch.allclose(text.x_BND[row, t] - place, word, atol=1e-5)


@pytest.mark.parametrize(
    ("hides", "share_of_patches", "share_of_words"),
    [
        ("image", 0.8, 0.0),
        ("text", 0.0, 0.8),
        ("both", 0.15, 0.15),
    ],
)
def test_a_third_of_the_rows_hides_each_modality_with_exact_counts(
    hides, share_of_patches, share_of_words
):
    """All that is not hidden is shown."""
    rows = mlim_rows(CONFIG, count=240)
    samples = [rows[0, 0, row] for row in range(240)]
    samples = [sample for sample in samples if sample.hides == hides]
    assert 60 <= len(samples) <= 100
    for sample in samples:
        assert sorted([*sample.keep_K, *sample.hidden_M]) == list(range(9))
        assert len(sample.hidden_M) == expected_count(9, share_of_patches)
        assert not sample.is_masked_T[0]
        num_words = len(sample.ids_T) - 1
        assert sample.is_masked_T.sum() == expected_count(num_words, share_of_words)


def expected_count(num: int, share: float) -> int:
    if share == 0:
        return 0
    return max(1, round(num * share))


def test_what_is_hidden_changes_with_the_epoch_unless_masks_are_light():
    rows = mlim_rows(CONFIG)
    assert len({rows[epoch, 0, 0].hides for epoch in range(9)}) > 1
    light = mlim_rows(mlim_config(MlimConfig(masking="light")))
    validation = mlim_rows(CONFIG, training=False)
    for rows in (light, validation):
        assert {rows[0, 0, row].hides for row in range(20)} == {"both"}


def slow_losses(task: Mlim, batch: Any) -> tuple[float, float]:
    """Return MLM and RECON of a batch, row by row, in a single pass each."""
    nats = []
    errors = []
    token_head: Any = task.token_head
    painter: Any = task.pixel_decoder
    for part in batch.parts:
        for row in range(len(part.where)):
            states = slow_states(encoder_of(task), part, row)
            logits_TV = token_head(states[10:])
            for t in part.is_masked_BT[row].nonzero().flatten().tolist():
                nats.append(-logits_TV[t].log_softmax(0)[part.ids_BT[row, t]].item())
            painted_CHW = painter(states[None, 1:10])[0]
            true_CHW = (part.pixels()[row] + 1) / 2
            for y in range(SIDE):
                for x in range(SIDE):
                    error_C = painted_CHW[:, y, x] - true_CHW[:, y, x]
                    errors.append(error_C.square().sum().item())
    return sum(nats) / len(nats), sum(errors) / len(errors)


def slow_states(encoder: Encoder, part: Any, row: int) -> Tensor:
    """Return the states of one row: [CLS], nine patches, then words."""
    ids = part.ids_BT[row : row + 1].masked_fill(part.is_masked_BT[row], SIZES.mask_id)
    is_padding = part.is_padding_BT[row : row + 1]
    text = encoder.text(ids, is_padding)
    image = encoder.image(part.pixels()[row : row + 1]).x_BND.clone()
    for k in part.hidden_BM[row].tolist():
        image[0, 1 + k] = mask_word(encoder) + place_of(encoder.image, 1 + k)
    # all tokens as if of texts: one network for all, so only the padding counts
    tokens = Tokens(
        x_BND=torch.cat([image, text.x_BND], dim=1),
        num_image=0,
        is_padding_BN=torch.cat([torch.zeros(1, 10, dtype=torch.bool), is_padding], dim=1),
    )
    rows = encoder.rows(tokens)
    return rows.unpack(encoder.norm(encoder.run_blocks(tokens, rows)[0]))[0]


def test_losses_are_those_of_rows_one_by_one():
    task = build_mlim(CONFIG)
    batch = batch_of(5)
    assert len(batch.parts) == 3
    with torch.no_grad():
        output = task(batch)
        mlm, recon = slow_losses(task, batch)
    assert output.terms["mlm"].item() == pytest.approx(mlm, rel=1e-4)
    assert output.terms["mim"].item() == pytest.approx(recon, rel=1e-4)
    assert output.loss.item() == pytest.approx(mlm + recon, rel=1e-4)


def test_two_micro_batches_are_one_batch():
    """Masked tokens and patches are counted over the whole step; where no token is hidden there is
    no loss of them."""
    task = build_mlim(CONFIG)
    rows = mlim_rows(CONFIG)
    samples = [rows[0, 0, row] for row in range(12)]
    of_texts = [sample for sample in samples if sample.hides == "text"]
    with_image = [sample for sample in samples if sample.hides != "text"]
    halves: list[Any] = [rows.collate(of_texts), rows.collate(with_image)]
    losses = [task(batch).loss.item() for batch in task.before_step(halves)]
    whole = task(rows.collate(samples)).loss.item()
    assert sum(losses) / 2 == pytest.approx(whole, rel=1e-5)
    assert task(batch_of(12, "image")).terms["mlm"] == 0


@pytest.mark.parametrize("hides", ["image", "text", "both"])
def test_every_weight_is_trained_by_any_rows(hides):
    """Or processes that got other rows would wait for its gradient for ever."""
    task = build_mlim(CONFIG)
    task(batch_of(12, hides)).loss.backward()
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None, name


@torch.no_grad()
def test_evaluation_measures_both_checks():
    task = build_mlim(CONFIG)
    rows = mlim_rows(CONFIG, training=False)
    batch: Any = rows.collate([rows[0, 0, row] for row in range(8)])
    numbers = evaluator_of(task).evaluate_with_rows([batch]).numbers
    assert {"mlm_acc", "mlm_acc_wrong_image", "mim_mse_wrong_caption"} <= numbers.keys()

    painter = task.build_decoder()
    painter.load_state_dict(task.pixel_decoder.state_dict())
    true_BCHW = batch.images_BCHW / 255

    def paint(shown: Any) -> Tensor:
        return painter(task.encode(shown, keep=True, mask=True).x_BND[:, 1:10])

    painted = paint(batch)
    recon = 3 * F.mse_loss(painted, true_BCHW).item()
    assert numbers["recon"] == pytest.approx(recon, rel=1e-5)
    recon = 3 * F.mse_loss(paint(batch.with_text_of(batch.wrong)), true_BCHW).item()
    assert numbers["recon_wrong_caption"] == pytest.approx(recon, rel=1e-5)

    is_hidden_patch = torch.zeros(8, 9).scatter_(1, batch.hidden_BM, 1).view(8, 1, 3, 3)
    is_hidden = F.interpolate(is_hidden_patch, scale_factor=float(PATCH)).expand(-1, 3, -1, -1) > 0
    # pixels from -1 to 1
    mse = 4 * F.mse_loss(painted[is_hidden], true_BCHW[is_hidden]).item()
    assert numbers["mim_mse"] == pytest.approx(mse, rel=1e-4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Mlim(mlim_config(stem="linear"), SIZES), r"model\.stem patch_conv"),
        (
            lambda: replace(CONFIG, input=replace(CONFIG.input, patch_size=12)),
            r"needs an input\.patch_size that is a power of 2 \(value given: 12\)",
        ),
        (
            lambda: replace(CONFIG, input=replace(CONFIG.input, image_size=512, patch_size=256)),
            r"from 2 to 128 \(value given: 256\)",
        ),
        (
            lambda: mlim_config(MlimConfig(heavy_mask_ratio=1.0)),
            r"task\.heavy_mask_ratio 1\.0 is not in \(0, 1\)",
        ),
        # fixed in MLIM
        (
            lambda: from_dict(MlimConfig, {"normalize_targets": True}, "config.json"),
            r"no key|unknown key",
        ),
    ],
)
def test_configs_that_cannot_be_are_refused(build, message):
    with pytest.raises(UserError, match=message):
        build()
