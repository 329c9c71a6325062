"""transformers: foreign weights and configs, images and texts, and the Trainer.

Letters: B batch, T text tokens, A answers.
"""

import io  # noqa: I001
import json
import math
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
    Trainer,
    TrainingArguments,
)

from tests.data.test_tokenizer import TRICKY, word_level
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.config import EveModelConfig, to_dict
from eve_vl.data.batches import Sample, TextBatch
from eve_vl.data.kinds.questions import ImageQuestion, QuestionRows
from eve_vl.data.image_refs import ImageBytes, ImageFile
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.eve import Eve
from eve_vl.interop import hf
from eve_vl.interop.hf_processing import EveTokenizerFast
from eve_vl.run.writing import write_run
from eve_vl.utils.errors import UserError
from helpers.tiny_tasks import ANSWER_LIST, TOKENIZER, build, config_of, rows_of
from helpers.twins import CAPTIONS, ListSource, tiny_config
from tests.interop.test_hf import noise_image, write

# Loading


def test_fine_tuning_starts_from_the_encoder_of_another_task(tmp_path):
    task = write("masked", tmp_path / "run")
    hf.from_run(tmp_path / "run")[0].save_pretrained(tmp_path / "hub")
    model = hf.EveForVisualQuestionAnswering.from_pretrained(
        tmp_path / "hub", id2label={0: "yes", 1: "no", 2: "red"}
    )
    for name, tensor in task.encoder.state_dict().items():
        assert torch.equal(tensor, model.task.encoder.state_dict()[name])
    assert model.task.answers == ("yes", "no", "red")
    assert model.config.task["name"] == "vqa"
    last = model.task.answer_head[3]
    torch.testing.assert_close(last.bias.detach(), torch.full((3,), -math.log(2)))  # as VQA starts
    assert 0.2 < last.weight.std() < 0.4  # model.init_std 0.3
    model.save_pretrained(tmp_path / "vqa")
    assert AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path / "vqa").task.answers == (
        "yes",
        "no",
        "red",
    )


class Evil:
    """What a pickle may do: write a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "code ran")


def test_pickles_are_refused(tmp_path):
    write("vqa", tmp_path / "run")
    hf.from_run(tmp_path / "run")[0].save_pretrained(tmp_path / "hub")
    proof, hub = tmp_path / "proof", tmp_path / "hub"
    torch.save({"task.encoder.image.cls": Evil(proof)}, hub / "pytorch_model.bin")
    torch.load(hub / "pytorch_model.bin", weights_only=False)
    assert proof.read_text() == "code ran"  # the file is armed
    proof.unlink()
    hf.EveModel.from_pretrained(hub, use_safetensors=False)
    assert not proof.exists()
    hf.EveModel.from_pretrained(hub, dtype="auto")
    with pytest.raises(UserError, match=r"the weights stay float32"):
        hf.EveModel.from_pretrained(hub, dtype=torch.bfloat16)
    (hub / "model.safetensors").unlink()
    for load in (hf.EveModel.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(OSError, match=r"no file named model\.safetensors"):
            load(hub)
    shutil.copy(hub / "pytorch_model.bin", hub / "model.safetensors")
    with pytest.raises(Exception, match=r"(?i)header|safetensor"):
        hf.EveModel.from_pretrained(hub)
    (hub / "model.safetensors").write_bytes(pickle.dumps(Evil(proof)))
    with pytest.raises(Exception, match=r"(?i)header|safetensor"):
        hf.EveModel.from_pretrained(hub)
    assert not proof.exists()


def test_configs_are_checked(tmp_path):
    model = to_dict(tiny_config().model)
    with pytest.raises(UserError, match="unknown key 'dpeth'; did you mean 'depth'"):
        hf.EveConfig(model=model | {"dpeth": 3})
    with pytest.raises(UserError, match="embed_dim 15 is not divisible by num_heads 2"):
        hf.EveConfig(model=model | {"embed_dim": 15})
    assert hf.EveConfig().run.model == EveModelConfig()
    assert hf.EveConfig(model=model) != hf.EveConfig()
    config = hf.EveConfig(model=model, vocab_size=99)
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() | {
        "_name_or_path": ""
    } == config.to_dict() | {"_name_or_path": ""}


def test_another_format_is_refused(tmp_path):
    write("vqa", tmp_path / "run")
    hf.from_run(tmp_path / "run")[0].save_pretrained(tmp_path / "hub")
    now = json.loads((tmp_path / "hub" / "config.json").read_text())
    (tmp_path / "hub" / "config.json").write_text(json.dumps(now | {"format": 99}))
    with pytest.raises(UserError, match="config format 99 is not supported"):
        AutoConfig.from_pretrained(tmp_path / "hub")


def test_baselines_have_a_class_of_their_own(tmp_path):
    config = tiny_config(task=ContrastMatchConfig(projection_dim=8))
    write_run(tmp_path / "run", config, TOKENIZER, build(config))
    model, _ = hf.from_run(tmp_path / "run")
    assert type(model) is hf.EveForContrastMatch
    assert isinstance(model, hf.EveForMaskedModeling)
    model.save_pretrained(tmp_path / "hub")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "hub")
    assert again.config.task["name"] == "contrast_match"
    assert all(
        torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items()
    )
    with pytest.raises(AttributeError, match="EveForNothing"):
        _ = hf.EveForNothing


# Processors


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_pixels_are_those_of_our_evaluation(tmp_path):
    smooth = Image.fromarray(noise_image(1, 12, 9)).resize((150, 90), Image.Resampling.BICUBIC)
    files = [encoded(smooth, "JPEG"), encoded(smooth, "PNG"), encoded(smooth.convert("L"), "JPEG")]
    files += [encoded(smooth.convert("RGBA"), "PNG"), encoded(smooth.resize((16, 16)), "PNG")]
    rows = [
        ImageQuestion(
            image=ImageBytes(data=data),
            question="a",
            question_id=number,
            answers=("red",),
            answer_type="",
            where="x",
        )
        for number, data in enumerate(files)
    ]
    config = config_of("vqa")
    expected = rows_of(
        QuestionRows([ListSource(rows)], config, TOKENIZER, training=False), len(rows)
    ).pixels()
    processor = hf.EveProcessor.from_eve(TOKENIZER, config.input)
    paths = []
    for number, data in enumerate(files):
        paths.append(tmp_path / f"{number}.img")
        paths[-1].write_bytes(data)
    for given in (files, paths, list(map(str, paths)), [ImageFile(path=path) for path in paths]):
        found = processor(images=given)["pixel_values"]
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)
    opened = processor(images=[Image.open(path) for path in paths[1:2] + paths[3:]])["pixel_values"]
    assert torch.equal(opened, expected[[1, 3, 4]])
    assert torch.equal(processor(images=files[1])["pixel_values"], expected[1:2])
    assert expected.min() < -0.5
    assert expected.max() > 0.5
    both = processor(images=files[0], images_right=files[1], text="a red circle")
    assert set(both) == {"pixel_values", "pixel_values_right", "input_ids", "attention_mask"}
    assert torch.equal(both["pixel_values_right"], expected[1:2])
    with pytest.raises(UserError, match="give images, text or both"):
        processor()
    with pytest.raises(UserError, match="expected a square"):
        hf.EveImageProcessor(size={"height": 16, "width": 20})


def bert(folder: Path) -> Tokenizer:
    """It puts a [SEP] last."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "red",
        "circle",
        "##s",
        "two",
        "on",
        "gray",
        ",",
        "[",
        "]",
        "mask",
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    return Tokenizer.load(folder / "vocab.txt")


def words(folder: Path) -> Tokenizer:
    """It adds no [CLS] by itself, and knows its special tokens as plain words."""
    word_level({"<pad>": 0, "<unk>": 1, "<s>": 2, "<mask>": 3, "red": 4, "circle": 5}).save(
        str(folder / "words.json")
    )
    return Tokenizer.load(folder / "words.json")


@pytest.mark.parametrize("make", [lambda _: TOKENIZER, bert, words], ids=["bpe", "bert", "words"])
def test_ids_are_those_of_our_tokenizer(tmp_path, make):
    own = make(tmp_path)
    texts = [*CAPTIONS, *TRICKY, "red " * 30, "a [MASK] circle, <mask>", " red"]
    before = own.to_json()
    EveTokenizerFast.from_eve(own, tiny_config().input).save_pretrained(tmp_path / "hub")
    assert own.to_json() == before
    tokenizer = EveTokenizerFast.from_pretrained(tmp_path / "hub")
    assert (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.mask_token_id) == (
        own.pad_id,
        own.cls_id,
        own.mask_id,
    )
    assert len(tokenizer) <= own.vocab_size
    expected = [own.encode(text, 12)[0].tolist() for text in texts]
    assert [tokenizer(text, truncation=True)["input_ids"] for text in texts] == expected
    assert tokenizer(texts, truncation=True)["input_ids"] == expected
    assert tokenizer(texts)["input_ids"] == [own.encode(text, 999)[0].tolist() for text in texts]
    for padding, length in ((True, 0), ("max_length", 12)):
        found = tokenizer(texts, truncation=True, padding=padding, return_tensors="pt")
        batch = batch_of_ids(expected, own.pad_id, length)
        assert torch.equal(found["input_ids"], batch.ids_BT)
        assert torch.equal(found["attention_mask"] == 0, batch.is_padding_BT)
    one = tokenizer(texts[0], return_tensors="pt")
    assert one["input_ids"].tolist() == [own.encode(texts[0], 999)[0].tolist()]


def batch_of_ids(rows: list[list[int]], pad_id: int, length: int) -> TextBatch:
    return TextBatch.collate(
        [Sample(ids_T=np.array(row), where="") for row in rows], pad_id, length
    )


def test_masks_are_those_of_fill_mask(tmp_path):
    tokenizer = EveTokenizerFast.from_eve(TOKENIZER, tiny_config().input)
    for text in (
        "a [MASK] circle",
        "[MASK] triangle, [MASK] heart",
        "a [MASK], two",
        "red " * 20 + "[MASK]",
        "no mask",
    ):
        found = tokenizer(text, truncation=True, split_special_tokens=False)
        assert found["input_ids"] == TOKENIZER.encode_with_masks(text, 12)[0].tolist()
        assert found["attention_mask"] == [1] * len(found["input_ids"])
    assert (
        TOKENIZER.mask_id
        in tokenizer(["a", "a [MASK]"], split_special_tokens=False)["input_ids"][1]
    )
    write("masked", tmp_path / "run")
    model, processor = hf.from_run(tmp_path / "run")
    image, text = noise_image(0), "a [MASK] circle"
    inputs = processor(images=image, text=text, split_special_tokens=False)
    assert isinstance(model, hf.EveForMaskedModeling)
    place = (inputs["input_ids"][0] == TOKENIZER.mask_id).nonzero().item()
    best = model(**inputs).logits[0, int(place)].softmax(0).max()
    guess = Eve.load(tmp_path / "run", device="cpu").fill_mask(image, text).guesses[0][0]
    assert best.item() == pytest.approx(guess.probability, rel=1e-4)


def test_texts_are_padded_as_a_run_wants_them(tmp_path):
    write(
        "vqa",
        tmp_path / "run",
        input={"padded_text_length": 10},
        model={"routing": "reference-dropless"},
    )
    model, processor = hf.from_run(tmp_path / "run")
    processor.save_pretrained(tmp_path / "hub")
    processor = AutoProcessor.from_pretrained(tmp_path / "hub")
    assert processor(text="a red circle")["input_ids"].shape == (1, 10)
    assert processor(text="red " * 30)["input_ids"].shape == (1, 10)
    image = noise_image(0)
    logits_A = model(**processor(images=image, text="a red circle")).logits[0]
    answers = Eve.load(tmp_path / "run", device="cpu").answer(image, "a red circle", top=8)
    expected = {answer.answer: answer.probability for answer in answers}
    assert dict(zip(ANSWER_LIST, logits_A.sigmoid().tolist(), strict=True)) == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("text", [[], [None], ["a", None], 3, [["a"]], b"a", {"a": 1}])
def test_what_is_no_text_is_named(text):
    processor = hf.EveProcessor.from_eve(TOKENIZER, tiny_config().input)
    with pytest.raises(UserError, match=r"^text is .*, expected a text or a list of texts"):
        processor(text=text)
    with pytest.raises(UserError, match="images is an empty list"):
        processor(images=[])


def test_an_empty_text_is_only_its_cls():
    processor = hf.EveProcessor.from_eve(TOKENIZER, tiny_config().input)
    assert processor(text="")["input_ids"].tolist() == [[TOKENIZER.cls_id]]
    found = processor(text=["", "a"])
    assert found["input_ids"][0].tolist() == [
        TOKENIZER.cls_id,
        *[TOKENIZER.pad_id] * (found["input_ids"].shape[1] - 1),
    ]
    assert found["attention_mask"][0].sum() == 1


# Trainer


def test_one_step_of_the_trainer(tmp_path):
    task = write("vqa", tmp_path / "run")
    model, processor = hf.from_run(tmp_path / "run")
    rows = []
    for number in range(4):
        inputs = processor(images=noise_image(number), text=CAPTIONS[number], padding="max_length")
        labels = F.one_hot(torch.tensor(number), len(ANSWER_LIST)).float() * 0.9
        rows.append({name: value[0] for name, value in inputs.items()} | {"labels": labels})
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        max_steps=1,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to="none",
        use_cpu=True,
        logging_steps=1,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, processing_class=processor)  # pyright: ignore
    loss = trainer.train().training_loss
    assert 0 < loss < math.inf
    changed = [
        name
        for name, tensor in task.state_dict().items()
        if not torch.equal(tensor, model.task.state_dict()[name])
    ]
    assert {
        "encoder.image.proj.weight",
        "encoder.text.words.weight",
        "answer_head.3.weight",
    } <= set(changed)
    (saved,) = (tmp_path / "trainer").glob("checkpoint-1")
    again = hf.EveForVisualQuestionAnswering.from_pretrained(saved)
    assert all(
        torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items()
    )
    assert torch.isfinite(torch.tensor(trainer.evaluate(rows)["eval_loss"]))  # pyright: ignore
    assert json.loads((saved / "config.json").read_text())["architectures"] == [
        "EveForVisualQuestionAnswering"
    ]
    assert transformers.AutoProcessor.from_pretrained(saved).tokenizer.model_max_length == 12
