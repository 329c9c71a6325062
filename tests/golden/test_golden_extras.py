"""Other recordings of the published code: optimiser, schedules, text, positions, retrieval."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eve_vl.config import TrainConfig
from eve_vl.data.row_dataset import NAMES_A_SIDE
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.metrics import retrieval as metrics
from eve_vl.metrics import vqa
from eve_vl.metrics.matches import Relevance
from eve_vl.metrics.ranks import best_ranks
from eve_vl.metrics.topk import top_candidates
from eve_vl.model.positions import resize_positions
from eve_vl.tasks.retrieval.gallery import Gallery
from eve_vl.tasks.retrieval.rerank_choice import search_gallery
from eve_vl.tasks.retrieval.reranking import rerank_scores
from eve_vl.tasks.retrieval.task import Retrieval
from eve_vl.train.learning_rate import learning_rate
from eve_vl.train.optimizer import build_optimizer
from golden_check import Fixture
from helpers.slow_experts import in_rows

GOLDEN = Path(__file__).parents[1] / "golden"
PUBLISHED_RECALLS = {
    "tr1": "txt_r1",
    "tr5": "txt_r5",
    "tr10": "txt_r10",
    "ir1": "img_r1",
    "ir5": "img_r5",
    "ir10": "img_r10",
}


def recorded(name: str):
    return json.loads((GOLDEN / "extras" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def tiny() -> Fixture:
    return Fixture(GOLDEN / "tiny")


@pytest.mark.parametrize("name", ["vqa", "nlvr", "nlvr_biattn", "retrieval", "retrieval_load_head"])
def test_optimiser_groups_differ_only_in_the_decay_of_1d_parameters(tiny, name):
    """Norms with unusual names, LayerScale, temperature and embeddings: we do not decay them."""
    task, table = tiny.task(name.removesuffix("_load_head"), "dropless")
    heads = {key for key in table if not key.startswith("encoder.")}
    new_parameters = heads if name != "retrieval_load_head" else set()
    config = TrainConfig(lr=3e-5, weight_decay=0.01, head_lr_multiplier=10)
    key_of = {id(parameter): key for key, parameter in task.named_parameters()}
    num_axes = {}
    rates_and_decays = {}
    for group in build_optimizer(task.named_parameters(), config, new_parameters).param_groups:
        for parameter in group["params"]:
            published_names = table[key_of[id(parameter)]]
            is_stacked = len(published_names) > 1
            for published_name in published_names:
                num_axes[published_name] = parameter.ndim - is_stacked
                rate = config.lr * group["lr_scale"]
                rates_and_decays[published_name] = rate, group["weight_decay"]

    groups = recorded("optimizer_groups")["groups"][name]
    assert {key for group in groups for key in group["params"]} == rates_and_decays.keys()
    num_different = 0
    for group in groups:
        for key in group["params"]:
            rate, decay = rates_and_decays[key]
            assert rate == pytest.approx(group["lr"]), key
            if decay != group["weight_decay"]:
                num_different += 1
                assert (decay, group["weight_decay"]) == (0, 0.01), key
                assert num_axes[key] <= 1, key
    assert num_different


@pytest.mark.parametrize(
    ("name", "warmup", "schedule"),
    [
        ("linear_warm0.1_39steps", 0.1, "linear"),
        ("linear_warm0.25_39steps", 0.25, "linear"),
        ("cos_warm0.2_39steps", 0.2, "cosine"),
    ],
)
def test_learning_rates_follow_the_published_schedules(name, warmup, schedule):
    config = TrainConfig(
        lr=3e-5,
        warmup=warmup,
        schedule=schedule,
        steps=39,
    )
    rates = [learning_rate(step, config) for step in range(39)]
    expected = [rate for rate, _ in recorded("schedules")[name]]
    assert rates == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("num_words", [3, 30, 40])
def test_captions_are_cleaned_as_published(num_words):
    tokenizer = Tokenizer.train(["a man with a hat"], 300)
    tokenizer.clean_as_published(num_words)
    for text, cleaned in recorded("text_preprocessing")["pre_caption"][str(num_words)]:
        assert tokenizer.backend.normalizer.normalize_str(text) == cleaned, text


def test_questions_are_cleaned_like_captions():
    """The published code leaves double spaces and the marks around "<person>" in questions."""
    tokenizer = Tokenizer.train(["a man with a hat"], 300)
    tokenizer.clean_as_published(30)
    for text, cleaned in recorded("text_preprocessing")["pre_question"]["30"]:
        expected = cleaned.replace("<person>", "person").replace("`", "")
        expected = " ".join(expected.split())
        assert tokenizer.backend.normalizer.normalize_str(text) == expected, text


def test_soft_targets_are_the_published_scores():
    for count, score in recorded("text_preprocessing")["vqa_get_score"].items():
        answers = ["yes"] * int(count) + ["no"] * (10 - int(count))
        assert vqa.soft_targets(answers).get("yes", 0.0) == score


def test_words_that_forbid_mirroring_are_the_published_ones():
    """We look for whole words in any case, and the published code for strings in lower case."""
    for question, answers, is_forbidden in recorded("text_preprocessing")["left_or_right_in"]:
        texts = [question]
        texts += [answers] if isinstance(answers, str) else answers
        names_a_side = any(NAMES_A_SIDE.search(text) for text in texts)
        is_substring = any("bright" in text for text in texts)
        is_in_capitals = any("Left" in text for text in texts)
        assert names_a_side == ((is_forbidden and not is_substring) or is_in_capitals), texts


def test_positions_are_resized_as_published():
    tensors = load_file(GOLDEN / "extras" / "pos_embed_interp.safetensors")
    targets = [name for name in tensors if "_dst_" in name]
    assert len(targets) == 4
    for target in targets:
        (source,) = (name for name in tensors if name.startswith(f"{target[0]}_src"))
        expected = tensors[target]
        resized = resize_positions(tensors[source], len(expected) - 1)
        torch.testing.assert_close(resized, expected, rtol=0, atol=1e-6)


def test_scores_and_recalls_of_search_and_reranking_are_the_published_ones(tiny):
    tensors = load_file(GOLDEN / "extras" / "retrieval_eval.safetensors")
    notes = recorded("retrieval_eval")
    task, _ = tiny.task("retrieval", "dropless")
    assert isinstance(task, Retrieval)
    images = tensors["image"]
    ids = tensors["text_ids"]
    is_padding = tensors["text_atts"] == 0
    num_images = len(images)
    num_texts = len(ids)
    k = notes["k_test"]
    owners = [notes["txt2img"][str(text)] for text in range(num_texts)]
    with torch.no_grad():
        gallery = Gallery(
            image_Id=task.image_features(images),
            text_Nd=task.text_features(ids, is_padding),
            text_T=torch.arange(num_texts),
            ids=list(ids),
            lengths=(~is_padding).sum(1).tolist(),
            owner_I=torch.zeros(num_images, dtype=torch.int64),
            pixels=dict(enumerate(images)),
            relevance=Relevance.from_pairs(owners, list(range(num_texts)), num_images, num_texts),
        )
        torch.testing.assert_close(
            gallery.image_Id @ gallery.caption_Td.T, tensors["sims_i2t"], rtol=0, atol=2e-5
        )
        best_IK = top_candidates(gallery.image_Id, gallery.caption_Td, k)[0]
        best_TK = top_candidates(gallery.caption_Td, gallery.image_Id, k)[0]
        scores_IK, scores_TK = rerank_scores(task, gallery, best_IK, best_TK)
    for best, scores, expected in (
        (best_IK, scores_IK, tensors["rerank_i2t"]),
        (best_TK, scores_TK, tensors["rerank_t2i"]),
    ):
        all_scores = torch.full_like(expected, -100).scatter(1, best, scores)
        torch.testing.assert_close(all_scores, expected, rtol=0, atol=5e-5)

    published = notes["metrics"]
    numbers = search_gallery(task, gallery, 0).numbers
    for name in ("tr1", "tr5", "tr10", "ir1", "ir5"):
        expected = published["plain"][PUBLISHED_RECALLS[name]]
        assert 100 * numbers[name] == pytest.approx(expected)
    reranked = search_gallery(task, gallery, k).numbers
    for name in ("tr1", "ir1"):
        expected = published["rerank"][PUBLISHED_RECALLS[name]]
        assert 100 * reranked[name] == pytest.approx(expected)


def test_recalls_of_random_scores_are_the_published_ones():
    tensors = load_file(GOLDEN / "extras" / "retrieval_eval.safetensors")
    notes = recorded("retrieval_eval")
    scores = tensors["random_scores_i2t"]
    images = [notes["txt2img"][str(text)] for text in range(13)]
    relevance = Relevance.from_pairs(images, list(range(13)), 6, 13)
    numbers = metrics.summary(
        best_ranks(torch.eye(6), scores.T, relevance.texts_of_image),
        best_ranks(torch.eye(13), scores, relevance.images_of_text),
    )
    published = notes["metrics"]["random_scores"]
    for name, published_name in PUBLISHED_RECALLS.items():
        assert 100 * numbers[name] == pytest.approx(published[published_name])
    assert 100 * numbers["r_mean"] == pytest.approx(published["r_mean"])


def test_the_boundary_of_image_and_text_is_fixed_even_if_patches_are_dropped(tiny):
    """With 4 of 16 patches, 12 of the 40 text tokens are routed as image in the published code."""
    moe = tiny.task("vqa", "released")[0].encoder.blocks[-1].ffn
    demonstration = (
        "ids_keep 4 of 16 patches, vl: number of the 40 text tokens that received vision_embed "
        "instead of text_embed"
    )
    expected = recorded("quirk_demonstrations")[demonstration]
    _, rows = in_rows(torch.zeros(2, 5 + 40, 1), 5)
    is_image_BN = moe.fixed_boundary(rows).view(2, -1) == 0
    assert is_image_BN[:, :5].all()
    assert is_image_BN[:, 5:].sum(1).tolist() == [expected, expected]
