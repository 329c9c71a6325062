"""Data for campaign.py: small valid files of every form, with the entry points that read them."""

import json
import tarfile
from pathlib import Path
from typing import Any

from eve_vl.config import TaskConfig
from eve_vl.tasks.nlvr2.config import NLVR2Config
from eve_vl.tasks.retrieval.config import RetrievalConfig
from helpers.campaign_actions import (
    ASKED,
    CLASSES,
    MASKED,
    TOKENIZER,
    check,
    damage_index,
    read_odd_names,
    train_on,
    train_tokenizer,
    use_answers,
    use_tokenizer,
)
from helpers.campaign_images import IMAGES, NUM_ROWS, encode, one_image, source_images
from helpers.campaign_reader import Files, Reader, files_in, lines
from helpers.campaign_tables import odd_table, parquet_of
from helpers.tars import tar_of
from helpers.tiny_rows import CAPTIONS

CAPTIONED = [{"image": name, "caption": [f"a cat {name}", f"the {name}"]} for name in IMAGES]


def data_readers(base: Path) -> dict[str, Reader]:
    """Return the readers of data."""
    readers = image_readers(base)
    readers |= table_readers()
    readers |= published_readers()
    readers |= shard_readers()
    return readers | text_readers()


def table(
    file: str,
    content: bytes,
    task: TaskConfig | None = None,
    other_files: Files = IMAGES,
    part: str = "",
    **fields: Any,
) -> Reader:
    """Return the reader of one file, which is damaged, next to others.

    part: the split of a source. fields: of the reader.
    """
    spec = file + part
    actions = {
        "check": check(spec),
        "train": train_on(spec, task),
    }
    defaults = {"targets": (file,), "actions": actions}
    return Reader(files={file: content, **other_files}, **(defaults | fields))


def image_readers(base: Path) -> dict[str, Reader]:
    """Return the readers of images, with and without a table."""
    captioned: Files = {}
    classes: Files = {}
    for number, (name, image) in enumerate(IMAGES.items()):
        captioned[name] = image
        captioned[f"{number}.txt"] = f"cat {name}\npet {name}".encode()
        classes[f"{'ab'[number % 2]}/{name}"] = image
    of_table = {
        "check": check("rows.jsonl"),
        "train": train_on("rows.jsonl", RetrievalConfig(), flip=True),
    }
    of_images = {
        "check": check(".", "--kind", "images"),
        "train": train_on(".", MASKED, modality="image"),
    }
    of_classes = {
        "check": check(".", "--kind", "labels"),
        "train": train_on(".", CLASSES),
    }
    of_captions = {
        "check": check("."),
        "train": train_on(".", None),
    }
    big_images = Reader(
        files=files_in(base / "big"),
        choose=one_image,
        actions=of_table,
        weight=0.05,
        damage=None,
        has_sound=False,  # most need more memory than is allowed
    )
    return {
        "folder": Reader(files=captioned, actions=of_captions, may_rename=True),
        "images only": Reader(files=IMAGES, actions=of_images, may_rename=True),
        "images": Reader(files=source_images(), choose=one_image, actions=of_table, weight=4),
        "big images": big_images,
        "class folders": Reader(files=classes, actions=of_classes, may_rename=True),
    }


def table_readers() -> dict[str, Reader]:
    """Return the readers of tables without a published layout."""
    questions = []
    labelled = []
    for number, name in enumerate(IMAGES):
        question = {
            "image": name,
            "question": "what is it",
            "answer": ["cat", "dog"],
        }
        questions.append(question | {"question_id": number, "answer_type": "other"})
        labelled.append(
            {
                "image": name,
                "label": "ab"[number % 2],
                "text": "a text",
            }
        )
    statements = []
    for number in range(0, NUM_ROWS, 2):
        images = [f"{number}.png", f"{number + 1}.png"]
        statement = {"images": images, "sentence": "both are", "label": "True"}
        statements.append(statement | {"identifier": f"dev-1-{number}-0"})
    embedded = []
    for data in IMAGES.values():
        image = {"bytes": data, "path": None}
        embedded.append({"image": image, "caption": f"cat {len(data)}"})
    pairs = [[name, f"cat {name}"] for name in IMAGES]
    csv = "\n".join(f'{name},"a cat, {name}"' for name in IMAGES)
    tsv = csv.replace(',"', '\t"')
    of_labels = {
        "check": check("rows.jsonl", "--kind", "labels"),
        "train": train_on("rows.jsonl", CLASSES),
    }
    odd_types = {"choose": odd_table, "has_sound": False, "damage": None}
    odd_names = Reader(
        files=IMAGES | {"rows.jsonl": lines(CAPTIONED)},
        actions={"any": read_odd_names},
        has_sound=False,
        targets=("rows.jsonl",),
        weight=0.5,
    )
    return {
        "jsonl": table("rows.jsonl", lines(CAPTIONED), weight=2),
        "jsonl questions": table("rows.jsonl", lines(questions), ASKED),
        "jsonl statements": table("rows.jsonl", lines(statements), NLVR2Config()),
        "csv": table("rows.csv", f"image,caption\n{csv}".encode()),
        "tsv": table("rows.tsv", f"image\tcaption\n{tsv}".encode()),
        "json list": table("rows.json", json.dumps(CAPTIONED).encode()),
        "json pairs": table("rows.json", json.dumps(pairs).encode()),
        "parquet": table("rows.parquet", parquet_of(CAPTIONED)),
        "parquet bytes": table("rows.parquet", parquet_of(embedded), other_files={}),
        "parquet types": table("rows.parquet", b"", **odd_types),
        "labels": table("rows.jsonl", lines(labelled), actions=of_labels),
        "names": odd_names,
    }


def published_readers() -> dict[str, Reader]:
    """Return the readers of published layouts."""
    coco = {"images": [], "annotations": []}
    karpathy = []
    vqa_questions = []
    vqa_annotations = []
    vqa_images: Files = {}
    for number, name in enumerate(IMAGES):
        text = f"cat {number}"
        coco["images"].append({"id": number, "file_name": name})
        coco["annotations"].append(
            {
                "image_id": number,
                "caption": text,
                "id": number,
            }
        )
        image = {"filename": name, "filepath": ".", "split": "train"}
        karpathy.append(image | {"sentences": [{"raw": f"cat {name}"}]})
        question = {"image_id": number, "question": "what is it", "question_id": number}
        vqa_questions.append(question)
        answers = [{"answer": "cat"}] * 3
        annotation = {"question_id": number, "answer_type": "other", "answers": answers}
        vqa_annotations.append(annotation)
        jpeg = encode("JPEG", size=(20, 20 + number))  # copies would be in one part of a split
        vqa_images[f"train2014/COCO_train2014_{number:012}.jpg"] = jpeg
    asked = json.dumps({"questions": vqa_questions, "data_subtype": "train2014"}).encode()
    annotations = "v2_annotations_train2014.json"
    vqa_files = vqa_images | {annotations: json.dumps({"annotations": vqa_annotations}).encode()}

    nlvr2 = []
    nlvr2_images: Files = {}
    for number in range(3):
        row = {"identifier": f"dev-{number}-0-0", "sentence": "both are", "label": "True"}
        nlvr2.append(row | {"directory": number})
        for side in (0, 1):
            png = encode("PNG", size=(20, 20 + 2 * number + side))
            nlvr2_images[f"dev/dev-{number}-0-img{side}.png"] = png

    questions = "v2_questions_train2014.json"
    return {
        "coco": table("captions_train2014.json", json.dumps(coco).encode()),
        "karpathy": table("rows.json", json.dumps({"images": karpathy}).encode(), part="#train"),
        "vqa2": table(questions, asked, ASKED, vqa_files),
        "vqa2 annotations": table(questions, asked, ASKED, vqa_files, targets=(annotations,)),
        "nlvr2": table("dev.json", lines(nlvr2), NLVR2Config(), nlvr2_images),
    }


def shard_readers() -> dict[str, Reader]:
    """Return the readers of tar shards."""
    members: Files = {}
    for number in range(4):
        members[f"{number:04}.png"] = IMAGES[f"{number}.png"]
        members[f"{number:04}.txt"] = b"cat %d" % number
        members[f"{number:04}.json"] = b'{"caption": "a dog"}'
    tar = tar_of(members, tarfile.USTAR_FORMAT)
    long_names = {f"ü{'x' * 120}{name}": data for name, data in members.items()}
    pax = tar_of(long_names)
    index_only = {"afterwards": damage_index, "damage": None}
    return {
        "tar": table("a.tar", tar, other_files={}, weight=2),
        "tar pax": table("a.tar", pax, other_files={}),
        "tar index": table("a.tar", tar, other_files={}, **index_only),
    }


def text_readers() -> dict[str, Reader]:
    """Return the readers of texts, lists of answers and tokenizers."""
    vocab = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "##s"]).encode()
    tokenizer = TOKENIZER.to_json().encode()
    texts = "\n".join(CAPTIONS).encode()
    answers_json = json.dumps(["cat", "dog"]).encode()
    answers_txt = lines([{"answer": "cat", "label": 0}])
    of_texts = {
        "check": check("rows.txt", "--kind", "texts"),
        "tokenizer": train_tokenizer("rows.txt"),
    }
    of_json = {"read": use_answers("answers.json")}
    of_txt = {"read": use_answers("a.txt")}
    of_tokenizer = {"load": use_tokenizer("tokenizer.json")}
    of_vocab = {"load": use_tokenizer("vocab.txt")}
    return {
        "txt": table("rows.txt", texts, other_files={}, actions=of_texts),
        "answers json": table("answers.json", answers_json, other_files={}, actions=of_json),
        "answers txt": table("a.txt", answers_txt, other_files={}, actions=of_txt),
        "tokenizer.json": table(
            "tokenizer.json", tokenizer, other_files={}, actions=of_tokenizer, weight=2
        ),
        "vocab.txt": table("vocab.txt", vocab, other_files={}, actions=of_vocab),
    }
