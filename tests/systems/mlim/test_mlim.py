"""MLIM against slow loops: separate pixel blocks, three kinds of masks, both losses."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.config import Config
from eve_vl.config.json_form import from_dict
from eve_vl.data.batches import Sample
from eve_vl.data.masked_batches import PairBatch
from eve_vl.model.encoder import Encoder
from eve_vl.model.image_embedding import ImageEmbed
from eve_vl.model.stems import PatchConvStem
from eve_vl.model.text_embedding import TextEmbed
from eve_vl.model.tokens import Tokens
from eve_vl.run import bench
from eve_vl.systems.mlim.pretraining.config import MlimConfig
from eve_vl.systems.mlim.pretraining.dataset import BatchByMask
from eve_vl.systems.mlim.pretraining.decoder import ConvDecoder
from eve_vl.systems.mlim.pretraining.task import Mlim
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.utils.errors import UserError
from helpers.mlim import SIZES, build_mlim, mlim_config, mlim_rows


def place_of(embed: ImageEmbed | TextEmbed, number: int) -> Tensor:
    assert embed.positions is not None
    return embed.positions[number] + embed.type_embed


def encoder_of(task: Mlim) -> Encoder:
    assert isinstance(task.encoder, Encoder)
    return task.encoder


def batch_of(config: Config, num: int = 9) -> BatchByMask:
    rows = mlim_rows(config)
    batch = rows.collate([rows[0, 0, row] for row in range(num)])
    assert isinstance(batch, BatchByMask) and len(batch.parts) == 3
    return batch


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


def test_a_place_of_the_embedder_sees_its_own_block_and_a_hidden_one_shows_nothing():
    """MLIM's own idea: hiding a token hides exactly a square of pixels, from everything."""
    task = build_mlim(mlim_config())
    encoder = encoder_of(task)
    pixels = torch.randn(1, 3, 48, 48, requires_grad=True)
    for k in range(9):
        word = torch.randn(1, 1, 16)
        tokens = encoder.image(pixels, replacement=(torch.tensor([[k]]), word))
        assert torch.allclose(tokens.x_BND[0, 1 + k], word[0, 0] + place_of(encoder.image, 1 + k))
        (gradient,) = torch.autograd.grad(tokens.x_BND.square().sum(), pixels)
        is_seen = torch.ones(48, 48, dtype=torch.bool)
        is_seen[16 * (k // 3) : 16 * (k // 3) + 16, 16 * (k % 3) : 16 * (k % 3) + 16] = False
        assert torch.equal((gradient != 0).any(1)[0], is_seen)


def test_hidden_patches_and_hidden_tokens_start_as_the_same_word():
    task = build_mlim(mlim_config())
    encoder = encoder_of(task)
    part = batch_of(task.config).both
    assert part is not None
    image, text = task.embed(part, keep=True, mask=True)
    assert image is not None
    word = encoder.text.norm(encoder.text.words.weight[SIZES.mask_id])
    for row, hidden in enumerate(part.hidden_BM.tolist()):
        for k in hidden:
            place = place_of(encoder.image, 1 + k)
            assert torch.allclose(image.x_BND[row, 1 + k] - place, word, atol=1e-5)
        for t in part.is_masked_BT[row].nonzero().flatten().tolist():
            place = place_of(encoder.text, t)
            assert torch.allclose(text.x_BND[row, t] - place, word, atol=1e-5)


def test_a_third_of_the_rows_hides_each_thing_with_exact_counts():
    """What is not hidden is shown whole: beside most of an image hidden all words, beside most
    words hidden all patches."""
    rows = mlim_rows(mlim_config(), count=240)
    shares = {"image": (0.8, 0.0), "text": (0.0, 0.8), "both": (0.15, 0.15)}
    counts = Counter()
    for row in range(240):
        sample = rows[0, 0, row]
        counts[sample.hides] += 1
        of_image, of_text = shares[sample.hides]
        assert sorted([*sample.keep_K, *sample.hidden_M]) == list(range(9))
        assert len(sample.hidden_M) == (max(1, round(9 * of_image)) if of_image else 0)
        assert not sample.is_masked_T[0]
        assert sample.is_masked_T.sum() == (
            max(1, round((len(sample.ids_T) - 1) * of_text)) if of_text else 0
        )
    assert all(60 <= counts[hides] <= 100 for hides in shares)
    assert len({rows[epoch, 0, 0].hides for epoch in range(9)}) > 1  # drawn anew in each epoch
    light = mlim_rows(mlim_config(MlimConfig(masking="light")))
    assert {light[0, 0, row].hides for row in range(20)} == {"both"}
    assert {mlim_rows(mlim_config(), training=False)[0, 0, row].hides for row in range(20)} == {
        "both"
    }


def slow_losses(task: Mlim, batch: BatchByMask) -> tuple[float, float]:
    """MLM and RECON of a batch, row by row, in a single pass each."""
    encoder = encoder_of(task)
    errors = []
    nats = []
    painter: Any = task.pixel_decoder
    head: Any = task.token_head
    for part in batch.parts:
        for row in range(len(part.where)):
            ids = part.ids_BT[row : row + 1]
            is_masked = part.is_masked_BT[row]
            text = encoder.text(
                ids.masked_fill(is_masked, SIZES.mask_id), part.is_padding_BT[row : row + 1]
            )
            pixels = part.pixels()[row : row + 1]
            hidden = part.hidden_BM[row].tolist()
            image = encoder.image(pixels).x_BND.clone()
            for k in hidden:
                word = encoder.text.norm(encoder.text.words.weight[SIZES.mask_id])
                image[0, 1 + k] = word + place_of(encoder.image, 1 + k)
            is_none = torch.cat(
                [torch.zeros(1, 10, dtype=torch.bool), part.is_padding_BT[row : row + 1]], dim=1
            )
            tokens = Tokens(
                x_BND=torch.cat([image, text.x_BND], dim=1), num_image=0, is_padding_BN=is_none
            )
            # all tokens as if of texts: one network for all, so only the padding counts
            rows = encoder.rows(tokens)
            states = rows.unpack(encoder.norm(encoder.run_blocks(tokens, rows)[0]))[0]
            for t in is_masked.nonzero().flatten().tolist():
                logits = head(states[10 + t : 11 + t])[0]
                nats.append(-logits.log_softmax(0)[ids[0, t]].item())
            painted = painter(states[None, 1:10])[0]
            true = (pixels[0] + 1) / 2
            for y in range(48):
                for x in range(48):
                    errors.append(sum((painted[c, y, x] - true[c, y, x]) ** 2 for c in range(3)))
    return sum(nats) / len(nats), float(sum(errors)) / len(errors)


def test_losses_are_those_of_rows_one_by_one():
    config = mlim_config()
    task = build_mlim(config)
    batch = batch_of(config, 7)
    with torch.no_grad():
        output = task(batch)
        mlm, recon = slow_losses(task, batch)
    assert output.terms["mlm"].item() == pytest.approx(mlm, rel=1e-4)
    assert output.terms["mim"].item() == pytest.approx(recon, rel=1e-4)
    assert output.loss.item() == pytest.approx(mlm + recon, rel=1e-4)


def test_two_micro_batches_are_one_batch():
    """Masked tokens and patches are counted over the whole step; where no token is hidden there is
    no loss of them."""
    config = mlim_config()
    task = build_mlim(config)
    rows = mlim_rows(config)
    samples = [rows[0, 0, row] for row in range(12)]
    of_texts = [sample for sample in samples if sample.hides == "text"]
    with_image = [sample for sample in samples if sample.hides != "text"]

    def collated(some: list[Sample]) -> BatchByMask:
        batch = rows.collate(some)
        assert isinstance(batch, BatchByMask)
        return batch

    whole = task(collated(samples)).loss
    halves = [task(batch) for batch in task.before_step([collated(of_texts), collated(with_image)])]
    assert (halves[0].loss + halves[1].loss).item() / 2 == pytest.approx(whole.item(), rel=1e-5)
    assert (
        task(collated([sample for sample in with_image if sample.hides == "image"])).terms["mlm"]
        == 0
    )


@pytest.mark.parametrize("hides", ["image", "text", "both"])
def test_every_weight_is_trained_by_any_rows(hides):
    """Or processes that got other rows would wait for its gradient for ever."""
    config = mlim_config()
    task = build_mlim(config)
    rows = mlim_rows(config)
    task(
        rows.collate([sample for row in range(12) if (sample := rows[0, 0, row]).hides == hides])
    ).loss.backward()
    assert all(parameter.grad is not None for parameter in task.parameters())


def test_evaluation_measures_both_checks():
    config = mlim_config()
    task = build_mlim(config)
    rows = mlim_rows(config, training=False)
    batch = rows.collate([rows[0, 0, row] for row in range(8)])
    assert isinstance(batch, PairBatch) and batch.wrong is not None
    numbers = evaluator_of(task).evaluate_with_rows([batch]).numbers
    painter = task.build_decoder()
    painter.load_state_dict(task.pixel_decoder.state_dict())
    with torch.no_grad():
        for name, expected_rows in (
            ("recon", batch),
            ("recon_wrong_caption", batch.with_text_of(batch.wrong)),
        ):
            painted = painter(task.encode(expected_rows, keep=True, mask=True).x_BND[:, 1:10])
            expected = 3 * F.mse_loss(painted, batch.images_BCHW / 255)
            assert numbers[name] == pytest.approx(expected.item(), rel=1e-5)
        hidden = torch.zeros(8, 9).scatter_(1, batch.hidden_BM, 1).view(8, 1, 3, 3)
        is_hidden = F.interpolate(hidden, scale_factor=16.0).expand(-1, 3, -1, -1) > 0
        painted = painter(task.encode(batch, keep=True, mask=True).x_BND[:, 1:10])
        expected = 4 * F.mse_loss(
            painted[is_hidden], (batch.images_BCHW / 255)[is_hidden]
        )  # pixels from -1 to 1
        assert numbers["mim_mse"] == pytest.approx(expected.item(), rel=1e-4)
    assert {"mlm_acc", "mlm_acc_wrong_image", "mim_mse_wrong_caption"} <= numbers.keys()


def test_bench_counts_the_tokens_that_a_step_shows():
    config = mlim_config()
    batch = batch_of(config)
    lengths = [int(length) for part in batch.parts for length in (~part.is_padding_BT).sum(1)]
    num_tokens = bench._count_tokens([batch], config)
    assert num_tokens == pytest.approx((10 + sum(lengths) / 9, sum(lengths) / 9))


def test_configs_that_cannot_be():
    with pytest.raises(UserError, match=r"model\.stem patch_conv"):
        Mlim(mlim_config(stem="linear"), SIZES)
    with pytest.raises(
        UserError, match=r"needs an input\.patch_size that is a power of 2 \(value given: 12\)"
    ):
        replace(mlim_config(), input=replace(mlim_config().input, patch_size=12))
    with pytest.raises(UserError, match=r"from 2 to 128 \(value given: 256\)"):
        replace(mlim_config(), input=replace(mlim_config().input, image_size=512, patch_size=256))
    with pytest.raises(UserError, match=r"task\.heavy_mask_ratio 1\.0 is not in \(0, 1\)"):
        mlim_config(MlimConfig(heavy_mask_ratio=1.0))
    with pytest.raises(UserError, match=r"no key|unknown key"):
        from_dict(MlimConfig, {"normalize_targets": True}, "config.json")  # fixed in MLIM
