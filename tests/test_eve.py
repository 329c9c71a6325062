"""`Eve` against batches built by hand and the parts of the tasks.

Letters: B batch, P patches, T text tokens, D width, V vocabulary, A answers.
"""

import copy
import inspect
import itertools
import pydoc
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import eve_vl
from eve_vl.config import DualEncoderConfig
from eve_vl.eve import Eve
from eve_vl.model.tokens import Tokens
from eve_vl.run.loading import LoadedRun
from eve_vl.tasks.contrast_match.task import ContrastMatch
from eve_vl.tasks.headless.config import HeadlessConfig
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.tasks.masked_signal.predictor import FilledText
from eve_vl.tasks.masked_signal.task import MaskedSignal
from eve_vl.tasks.nlvr2.task import NLVR2
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.retrieval.task import Retrieval
from eve_vl.tasks.vqa.task import VQA
from eve_vl.train.devices import pick_device, pick_dtype
from eve_vl.utils.errors import UserError
from helpers.tiny_runs import (
    ANSWERS,
    BASELINE,
    TASKS,
    TEXT,
    TEXTS,
    assert_close,
    ids_of,
    image_tokens,
    noise,
    pixels,
    text_cls,
    tiny_run,
    token_probabilities,
    write_run,
)

MASKED = MaskedSignalConfig(decoder_depth=1, decoder_dim=16, decoder_num_heads=2)

# Features


@pytest.mark.parametrize("name", ["retrieval", "baseline"])
def test_features_of_a_run_with_contrast_are_its_projections(name):
    run = tiny_run("masked", task=BASELINE) if name == "baseline" else tiny_run(name)
    eve = Eve(run)
    task = run.task
    assert isinstance(task, Retrieval | ContrastMatch)
    images = [noise(seed) for seed in range(3)]
    cls_BD = task.encoder.encode(image_tokens(task, *images), None).x_BND[:, 0]
    expected = cls_BD @ task.contrast.features.image.weight.T
    expected = expected / expected.norm(dim=1, keepdim=True)
    features = eve.encode_image(images)
    assert features.dtype == np.float32
    assert features.shape == (3, 8)
    assert_close(features, expected)
    for row, text in enumerate(TEXTS):
        state = task.encoder.encode(None, task.encoder.text(ids_of(eve, text), None)).x_BND[:, 0]
        state = state @ task.contrast.features.text.weight.T
        assert_close(eve.encode_text(TEXTS)[[row]], (state / state.norm()))


def test_features_of_other_runs_are_the_cls_state():
    for name in ("masked", "vqa", "nlvr2", "encoder"):
        run = run_of(name)
        state = run.task.encoder.encode(image_tokens(run.task, noise(0)), None).x_BND[:, 0]
        features = Eve(run).encode_image(noise(0))
        assert_close(features, (state / state.norm()))
        state = run.task.encoder.encode(
            None, run.task.encoder.text(ids_of(Eve(run), TEXT), None)
        ).x_BND[:, 0]
        assert_close(Eve(run).encode_text(TEXT), (state / state.norm()))


def test_order_is_kept_and_neighbours_do_not_matter():
    eve = Eve(tiny_run("retrieval"))
    images = [noise(seed, 20 + seed, 30) for seed in range(7)]
    texts = [*TEXTS, "a", TEXT]
    alone = np.concatenate([eve.encode_image(image) for image in images])
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, rtol=1e-6)
    texts_alone = np.concatenate([eve.encode_text(text) for text in texts])
    for size in (1, 3, 64):
        assert_close(eve.encode_image(images, batch_size=size), alone)
        assert_close(eve.encode_text(texts, batch_size=size), texts_alone)
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    assert eve.encode_image([]).shape == eve.encode_text([]).shape == (0, 8)


def test_long_texts_are_cut_as_in_training():
    eve = Eve(tiny_run("retrieval"))
    long = " ".join(["red"] * 30)
    cut = torch.from_numpy(eve.tokenizer.encode(long, 12)[0])[None]
    assert isinstance(eve.task, Retrieval)
    assert_close(eve.encode_text(long), eve.task.text_features(cut, None))


# Calls


@pytest.mark.parametrize("name", ["retrieval", "baseline"])
def test_match(name):
    run = tiny_run("masked", task=BASELINE) if name == "baseline" else tiny_run(name)
    eve = Eve(run)
    task = run.task
    assert isinstance(task, Retrieval | ContrastMatch)
    assert task.contrast.match_head is not None
    images = [noise(seed) for seed in range(3)]
    expected = [
        task.contrast.match_head(text_cls(eve, image, text)).softmax(1)[0, 1].item()
        for image, text in zip(images, TEXTS, strict=True)
    ]
    match_IT = eve.match(images, TEXTS)
    assert (match_IT.dtype, match_IT.shape) == (np.float32, (3, 3))
    assert_close(match_IT.diagonal(), expected)
    probability = eve.match(images[1], TEXTS[1])
    assert isinstance(probability, float)
    assert probability == pytest.approx(expected[1], rel=1e-4)


def test_answer():
    eve = Eve(tiny_run("vqa"))
    assert isinstance(eve.task, VQA)
    expected_A = eve.task.answer_head(text_cls(eve, noise(0), TEXT)).sigmoid()[0].tolist()
    answers = eve.answer(noise(0), TEXT)
    assert {answer.answer: answer.probability for answer in answers} == pytest.approx(
        dict(zip(ANSWERS, expected_A, strict=True)), rel=1e-4
    )
    assert [answer.probability for answer in answers] == sorted(
        (answer.probability for answer in answers), reverse=True
    )
    assert eve.answer(noise(0), TEXT, top=2) == answers[:2]
    with pytest.raises(UserError, match="top 0 is not positive"):
        eve.answer(noise(0), TEXT, top=0)
    with pytest.raises(UserError, match="text is empty"):
        eve.answer(noise(0), " ")


def test_verify():
    eve = Eve(tiny_run("nlvr2"))
    assert isinstance(eve.task, NLVR2)
    states = torch.cat([text_cls(eve, noise(0), TEXT), text_cls(eve, noise(1), TEXT)], dim=1)
    expected = eve.task.concat_head(states).softmax(1)[0, 1].item()
    judgement = eve.verify(noise(0), noise(1), TEXT)
    assert judgement.probability == pytest.approx(expected, rel=1e-4)
    assert judgement.is_true == (expected > 0.5)
    assert eve.verify(noise(1), noise(0), TEXT).probability != pytest.approx(expected, rel=1e-3)
    with pytest.raises(UserError, match=r"right image: no such file"):
        eve.verify(noise(0), "nowhere.png", TEXT)


def test_fill_mask():
    eve = Eve(tiny_run("masked"))
    mask = eve.tokenizer.mask_id
    ids = ids_of(eve, "a red circle, orange heart")[0].tolist()
    words = [eve.tokenizer.word(token) for token in ids]
    places = [words.index("red"), words.index("orange")]
    for place in places:
        ids[place] = mask
    expected_MV = token_probabilities(eve, noise(0), ids, places)
    filled = eve.fill_mask(noise(0), "a [MASK] circle, [MASK] heart", top=3)
    best_MV = expected_MV.topk(3)
    for row, guesses in enumerate(filled.guesses):
        assert [guess.text for guess in guesses] == [
            eve.tokenizer.word(token) for token in best_MV.indices[row].tolist()
        ]
        assert [guess.probability for guess in guesses] == pytest.approx(
            best_MV.values[row].tolist(), rel=1e-4
        )
    first, second = (guesses[0].text for guesses in filled.guesses)
    assert filled.text == f"a {first} circle, {second} heart"
    assert isinstance(filled, FilledText)


def test_fill_mask_needs_a_mask_that_is_read():
    eve = Eve(tiny_run("masked"))
    with pytest.raises(UserError, match="nothing to fill in"):
        eve.fill_mask(noise(0), "a red circle")
    with pytest.raises(UserError, match="beyond the 12 tokens"):
        eve.fill_mask(noise(0), "red " * 20 + "[MASK]")


def test_a_mask_is_plain_text_elsewhere():
    eve = Eve(tiny_run("masked"))
    plain = np.abs(eve.encode_text("a [MASK] circle") - eve.encode_text("a [ mask ] circle")).max()
    ids = eve.tokenizer.encode("a [MASK] circle", 12)[0]
    assert eve.tokenizer.mask_id not in ids
    assert plain > 1e-3


@pytest.mark.parametrize("normalize", [True, False])
def test_reconstruct(normalize):
    eve = Eve(tiny_run("masked", task={"normalize_targets": normalize}))
    assert isinstance(eve.task, MaskedSignal)
    keep = [0, 5, 10, 15]
    hidden = [patch for patch in range(16) if patch not in keep]
    result = eve.reconstruct(noise(0), TEXT, keep=keep[::-1])
    np.testing.assert_array_equal(result.original, noise(0))

    image = eve.task.encoder.image(pixels(noise(0)), torch.tensor([keep]))
    encoded = eve.task.encoder.encode(image, eve.task.encoder.text(ids_of(eve, TEXT), None))
    tokens = Tokens(x_BND=encoded.x_BND, num_image=5)
    predicted = eve.task.pixel_decoder(tokens, torch.tensor([keep]), torch.tensor([hidden]))[0]
    for patch, new in itertools.zip_longest([*hidden, *keep], predicted):
        first_row = 4 * (patch // 4)
        first_column = 4 * (patch % 4)
        box = slice(first_row, first_row + 4), slice(first_column, first_column + 4)
        truth = noise(0)[box]
        if new is None:
            np.testing.assert_array_equal(result.masked[box], truth)
            np.testing.assert_array_equal(result.reconstructed[box], truth)
            continue
        assert set(result.masked[box].flatten().tolist()) == {128}
        values = new.reshape(3, 4, 4).permute(1, 2, 0).detach().numpy()
        if normalize:
            scaled = truth / 127.5 - 1
            values = values * np.sqrt(scaled.var(ddof=1) + 1e-6) + scaled.mean()
        expected = ((values + 1) * 127.5).clip(0, 255)
        assert np.abs(result.reconstructed[box] - expected).max() < 1


def test_reconstruct_draws_what_to_hide():
    eve = Eve(tiny_run("masked"))
    first, again, with_seed_1 = (eve.reconstruct(noise(0), TEXT, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.reconstructed, again.reconstructed)
    assert (first.masked != with_seed_1.masked).any()
    for share, num_hidden in ((None, 12), (0.5, 8), (0.01, 1), (0.99, 15)):
        masked = eve.reconstruct(noise(0), TEXT, share=share).masked
        assert (masked == 128).all(2).sum() == pytest.approx(16 * num_hidden, abs=2)
    for bad in (0, 1, 1.5, -1):
        with pytest.raises(UserError, match="not in"):
            eve.reconstruct(noise(0), TEXT, share=bad)
    for keep in ([], [16], [-1], range(16)):
        with pytest.raises(
            UserError, match=r"give at least one of the patches 0 to 15, and not all"
        ):
            eve.reconstruct(noise(0), TEXT, keep=keep)


def test_joint_masking_runs_work_too():
    eve = Eve(tiny_run("masked", task={"joint_masking": True}))
    assert eve.reconstruct(noise(0), TEXT).reconstructed.shape == (16, 16, 3)
    assert len(eve.fill_mask(noise(0), "a [MASK] circle").guesses) == 1


# What a run can do

RUNS = {
    "masked": (None, "fill_mask explain reconstruct"),
    "pixels": (replace(MASKED, mlm_weight=0.0), "reconstruct"),
    "tokens": (replace(MASKED, mim_weight=0.0), "fill_mask explain"),
    "baseline": (BASELINE, "match zero_shot explain fill_mask reconstruct"),
    "baseline_without_pixels": (
        replace(BASELINE, mim_weight=0.0),
        "match zero_shot explain fill_mask",
    ),
    "baseline_without_matching": (
        replace(BASELINE, itm_weight=0.0),
        "zero_shot fill_mask explain reconstruct",
    ),
    "contrast": (replace(BASELINE, mim_weight=0.0, mlm_weight=0.0, itm_weight=0.0), "zero_shot"),
    "encoder": (HeadlessConfig(), ""),
    "retrieval": (None, "match zero_shot explain"),
    "contrast_alone": (RetrievalConfig(itm_weight=0.0, rerank=0), "zero_shot"),
    "vqa": (None, "answer explain"),
    "nlvr2": (None, "verify explain"),
}
ARGUMENTS = {
    "match": (noise(0), TEXT),
    "answer": (noise(0), TEXT),
    "verify": (noise(0), noise(1), TEXT),
    "fill_mask": (noise(0), "[MASK]"),
    "reconstruct": (noise(0), TEXT),
    "explain": (noise(0), TEXT),
    "experts": (noise(0), TEXT),
    "zero_shot": (noise(0), {"circle": ["a circle"], "square": ["a square"]}),
}
RECIPES = {
    "match": "scenes_retrieval",
    "zero_shot": "demo_retrieval",
    "answer": "demo_vqa",
    "verify": "demo_nlvr2",
    "explain": "scenes_retrieval",
}
MLM, MIM = (
    f"eve pretrain with --task.{name}-weight 1 (here it is 0) and another --out"
    for name in ("mlm", "mim")
)
PRETRAIN = "eve pretrain, or the run that this one started from"


def run_of(name: str) -> LoadedRun:
    task, _ = RUNS[name]
    return tiny_run(name if name in TASKS else "masked", task=task)


def how_to_get(name: str, call: str) -> str:
    """The advice by hand: train this task with the head that is off, else fine-tune from here or
    from where this came from."""
    switched_off = {
        **dict.fromkeys(
            [
                ("pixels", "fill_mask"),
                ("pixels", "explain"),
                ("contrast", "fill_mask"),
                ("contrast", "explain"),
            ],
            MLM,
        ),
        **dict.fromkeys(
            [
                ("tokens", "reconstruct"),
                ("baseline_without_pixels", "reconstruct"),
                ("contrast", "reconstruct"),
            ],
            MIM,
        ),
    }
    if (name, call) in switched_off:
        return switched_off[name, call]
    if call in ("fill_mask", "reconstruct"):
        return PRETRAIN
    start = "PRETRAINED" if name in ("retrieval", "contrast_alone", "vqa", "nlvr2") else "tiny"
    return f"eve finetune {RECIPES[call]} --init {start}"


@pytest.mark.parametrize("name", RUNS)
def test_calls(name):
    """Those that the heads allow are there, in `calls`, in dir() and with a help text; the others
    say how to get them."""
    eve = Eve(run_of(name))
    assert eve.calls == ("encode_image", "encode_text", *RUNS[name][1].split(), "experts")
    assert set(eve.calls) <= set(dir(eve))
    assert not (ARGUMENTS.keys() - set(eve.calls)) & set(dir(eve))
    assert (
        eve.encode_image(noise(0)).shape == eve.encode_text(TEXT).shape == (1, eve.task.feature_dim)
    )
    for call in ARGUMENTS:
        assert hasattr(eve, call) == (call in eve.calls)
        if call in eve.calls:
            assert inspect.getdoc(getattr(eve, call))
            continue
        with pytest.raises(UserError) as error:
            getattr(eve, call)(*ARGUMENTS[call])
        assert str(error.value) == (
            f"{call}: tiny is a run of task {eve.run.config.task.name}, which allows "
            f"{', '.join(eve.calls)}; "
            f"to get one that allows {call}: {how_to_get(name, call)}"
        )


def test_a_fine_tuned_run_sends_people_to_the_run_that_it_started_from(tmp_path: Path):
    """Or, if that is gone, to itself."""
    run = tiny_run("vqa")
    start = tmp_path / "start"
    eve = Eve(replace(run, config=replace(run.config, init=start)))
    for init, named in (("tiny", ""), (start, f", {start}")):
        with pytest.raises(
            UserError,
            match=rf"to get one that allows verify: eve finetune demo_nlvr2 --init {init}$",
        ):
            _ = eve.verify
        with pytest.raises(
            UserError, match=rf"eve pretrain, or the run that this one started from{named}$"
        ):
            _ = eve.fill_mask
        start.mkdir(exist_ok=True)


def test_towers_that_never_meet_need_another_model_to_match():
    run = run_of("contrast_alone")
    eve = Eve(replace(run, config=replace(run.config, model=DualEncoderConfig())))
    with pytest.raises(
        UserError,
        match=r"match: eve pretrain of another model, because itm_weight 1\.0 needs states of p",
    ):
        _ = eve.match


def test_help_tells_about_a_call():
    text = pydoc.plain(pydoc.render_doc(Eve(tiny_run("vqa")).answer))
    assert "answer(image: " in text and "top: int = 5, batch_size: int = 64" in text
    assert "Answer a question about an image" in text and "top: Number of answers to show" in text


def test_a_name_that_is_no_call_is_an_attribute_error():
    eve = Eve(tiny_run("vqa"))
    with pytest.raises(AttributeError, match="'Eve' object has no attribute 'anwser'"):
        _ = eve.anwser
    assert getattr(eve, "verify", None) is None
    assert copy.copy(eve).answer(noise(0), TEXT) == eve.answer(noise(0), TEXT)


def test_threads_share_runs():
    """Eight threads, each with 70 calls in an order of its own on two runs: all get what one thread
    gets, and no call leaves anything behind."""
    small = {"depth": 2, "num_deep_blocks": 1}
    vqa = Eve(tiny_run("vqa", model=small))
    masked = Eve(tiny_run("masked", model=small))
    long = " ".join(TEXTS)
    calls: list[
        tuple[int, Callable[[], Any]]
    ] = [  # how often, what; those that take long are rarer
        (16, lambda: vqa.encode_image(noise(0)).tolist()),
        (16, lambda: masked.encode_image(noise(1)).tolist()),
        (16, lambda: vqa.encode_text([TEXT, long]).tolist()),
        (16, lambda: masked.encode_text(TEXT).tolist()),
        (6, lambda: vqa.answer(noise(0), TEXT)),
        (6, lambda: vqa.answer(noise(1), long)),
        (6, lambda: masked.fill_mask(noise(0), "a [MASK] circle")),
        (2, lambda: masked.reconstruct(noise(0), TEXT).reconstructed.tolist()),
        (1, lambda: vqa.explain(noise(0), TEXT, word="blue").values()),
        (1, lambda: vqa.explain(noise(0), TEXT, block=0).values()),
        (1, lambda: masked.explain(noise(0), TEXT, word="blue").values()),
    ]
    expected = [call() for _, call in calls]

    def work(thread: int) -> list[tuple[int, Any]]:
        chosen = random.Random(thread).choices(
            range(len(calls)), [weight for weight, _ in calls], k=70
        )
        return [(number, calls[number][1]()) for number in chosen]

    with ThreadPoolExecutor(8) as pool:
        results = list(itertools.chain(*pool.map(work, range(8))))
    assert len(results) == 560
    assert {number for number, _ in results} == set(range(len(calls)))
    assert all(result == expected[number] for number, result in results)
    for module in (*vqa.task.modules(), *masked.task.modules()):
        assert not module._forward_hooks and not module._forward_pre_hooks and not module.training
    assert all(
        parameter.grad is None for parameter in (*vqa.task.parameters(), *masked.task.parameters())
    )


def test_load_from_a_folder(tmp_path: Path):
    folder = write_run(tiny_run("vqa"), tmp_path / "run")
    eve = Eve.load(folder, device="cpu")
    assert eve.answer(noise(0), TEXT) == Eve(tiny_run("vqa")).answer(noise(0), TEXT)
    assert not eve.task.training
    with pytest.raises(UserError, match="no such run folder"):
        Eve.load(tmp_path / "nowhere")
    assert (
        repr(eve)
        == f"Eve({folder}: vqa, step 1; calls encode_image, encode_text, answer, explain, experts)"
    )


def test_auto_is_bfloat16_where_the_hardware_multiplies_it(monkeypatch):
    for multiplies, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(
            "torch.cpu._is_avx512_bf16_supported", lambda multiplies=multiplies: multiplies
        )
        assert pick_dtype("auto", torch.device("cpu")) == dtype


def test_devices_are_those_of_torch():
    for name in ("cpu", "cpu:0", torch.device("cpu")):
        assert pick_device(name).type == "cpu"
    if not torch.cuda.is_available():
        assert pick_device("auto") == torch.device("cpu")
    for name in ("gpu", "cuda:99", "cuda:", "meta", "", None, torch.device("xpu:3")):
        with pytest.raises(
            UserError, match=rf"^device '{name}': torch has no such device here; give auto or cpu"
        ):
            pick_device(name)  # pyright: ignore[reportArgumentType]


def test_the_package_offers_eve_without_importing_torch():
    assert eve_vl.Eve is Eve
    with pytest.raises(AttributeError, match="no attribute 'Evil'"):
        _ = eve_vl.Evil
    code = "import sys, eve_vl; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
