"""Data for campaign.py: small valid files of every form, and the entry points that read them."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pyarrow import parquet

from eve_vl.cli import _dispatch as eve_command
from eve_vl.config import TaskConfig
from eve_vl.data.answer_list import read_answers
from eve_vl.data.opening import open_train_and_val
from eve_vl.data.readers.tar_index import INDEX_SUFFIX, find_index, shard_stamp
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.run.loading import build_task
from eve_vl.tasks.classification.config import ClassificationConfig
from eve_vl.tasks.evaluator import evaluator_class
from eve_vl.tasks.nlvr2.config import NLVR2Config
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.task import task_class
from eve_vl.tasks.vqa.config import VQAConfig
from helpers.mutations import mutate
from helpers.odd_files import odd_name
from helpers.odd_values import TEXTS
from helpers.twins import CAPTIONS, tiny_config, tiny_tokenizer

Files = dict[str, bytes]
Action = Callable[[Path], object]
NUM_ROWS = 6


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Sound files, which of them are damaged and how, and what reads the folder that holds them."""

    files: Files
    actions: Mapping[str, Action]
    num_actions: int = 9
    """N of them, sampled again, read each input."""
    targets: Sequence[str] = ()
    """Files that are damaged; empty: any."""
    damage: Callable[[Random, str, bytes], bytes] = mutate
    choose: Callable[[Random, Files], Files] = lambda _, files: dict(files)
    """What of the files one input is made of; the first of them is damaged if it gives other ones."""
    afterwards: Callable[[Random, Path], None] = lambda *_: None
    weight: float = 1.0
    """Its share of the inputs, next to the others'."""
    has_sound: bool = True
    """Whether everything reads the files as they are."""
    may_rename: bool = False


def encode(form: str, mode: str = "RGB", size: tuple[int, int] = (20, 24), **options: Any) -> bytes:
    """Return an image as a file."""
    noise = np.random.default_rng(len(form) + len(mode)).integers(
        0, 256, (size[1], size[0], 3), dtype=np.uint8
    )
    image, file = Image.fromarray(noise).convert("L" if mode == "I;16" else mode), io.BytesIO()
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    image.save(file, form, **options)
    return file.getvalue()


GOOD = encode("PNG")
IMAGES = {f"{number}.png": encode("PNG", size=(20, 20 + number)) for number in range(NUM_ROWS)}
CAPTIONED = [{"image": name, "caption": [f"a cat {name}", f"the {name}"]} for name in IMAGES]


def source_images() -> Files:
    """Return an image of every form and mode."""
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [Image.new("P", (20, 24), color) for color in (1, 2)]
    files = {
        f"{mode.lower()}.png": encode("PNG", mode)
        for mode in ("RGB", "RGBA", "P", "L", "LA", "1", "I;16")
    }
    files |= {
        f"{mode.lower()}.tif": encode("TIFF", mode)
        for mode in ("RGB", "CMYK", "I;16", "RGBA", "LAB", "F", "I")
    }
    files |= {
        "lzw.tif": encode("TIFF", compression="tiff_lzw"),
        "g4.tif": encode("TIFF", "1", compression="group4"),
    }
    files |= {
        "a.jpg": encode("JPEG"),
        "l.jpg": encode("JPEG", "L"),
        "cmyk.jpg": encode("JPEG", "CMYK"),
    }
    files |= {
        "turned.jpg": encode("JPEG", exif=exif),
        "progressive.jpg": encode("JPEG", progressive=True),
    }
    files |= {
        "a.gif": encode("GIF", "P"),
        "frames.gif": encode("GIF", "P", save_all=True, append_images=frames),
    }
    files |= {
        "a.webp": encode("WEBP"),
        "alpha.webp": encode("WEBP", "RGBA", lossless=True),
        "turned.webp": encode("WEBP", exif=exif),
    }
    files |= {
        "frames.png": encode(
            "PNG", save_all=True, append_images=[frame.convert("RGB") for frame in frames]
        )
    }
    files |= {
        "a.bmp": encode("BMP"),
        "p.bmp": encode("BMP", "P"),
        "a.ppm": encode("PPM"),
        "l.pgm": encode("PPM", "L"),
    }
    try:
        return files | {"a.avif": encode("AVIF")}
    except (OSError, KeyError):  # a Pillow without it
        return files


def big_images() -> Files:
    """Return images of about as many pixels as are accepted, in modes that need the most memory."""
    forms = [
        ("PNG", "RGBA"),
        ("PNG", "L"),
        ("PNG", "I;16"),
        ("PNG", "P"),
        ("PNG", "LA"),
        ("GIF", "P"),
        ("JPEG", "RGB"),
        ("JPEG", "CMYK"),
    ]
    forms += [("TIFF", "RGBA"), ("TIFF", "CMYK"), ("TIFF", "1")]
    files = {}
    for form, mode in forms:
        file = io.BytesIO()
        options = {"compression": "tiff_lzw" if mode != "1" else "group4"} if form == "TIFF" else {}
        Image.new(mode, (9400, 9400)).save(file, form, **options)
        files[f"big_{mode[:4].replace(';', '')}.{form.lower()}".lower()] = file.getvalue()
    return files


def one_image(rng: Random, files: Files) -> Files:
    """Lay out one of the images, a sound one, and the table that lists both."""
    name = rng.choice(list(files))
    rows = [{"image": image, "caption": f"cat {image}"} for image in (name, "sound.png")]
    return {name: files[name], "sound.png": GOOD, "rows.jsonl": lines(rows)}


def lines(rows: Sequence[object]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def odd_table(rng: Random, files: Files) -> Files:
    """Lay out a Parquet file with columns of unusual types."""
    bad_text = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff\xfe", b"ok"]).buffers())
    nested = pa.array([{"path": "0.png", "bytes": GOOD}, {"path": None, "bytes": None}])
    days = pa.array([2**31 - 1, -(2**31)], pa.date32())
    columns = [
        *(
            pa.array(["0.png", "1.png"]),
            pa.array(["a cat", None]),
            bad_text,
            nested,
            pa.array([GOOD, b""]),
            days,
        ),
        *(
            pa.array([2**62, -(2**62)], pa.timestamp("ns")),
            pa.array([1.5, float("nan")]),
            pa.array([[1], [2, 3]]),
        ),
        *(
            pa.array([["a", "b"], []]),
            pa.array(["0.png", "0.png"]).dictionary_encode(),
            pa.array([None, None]),
        ),
        *(
            pa.array([2**63, 0], pa.uint64()),
            pa.array([True, None]),
            pa.array([2**62, 1], pa.duration("s")),
        ),
        *(
            pa.array([[("a", "b")], []], pa.map_(pa.string(), pa.string())),
            pa.array(TEXTS[5:7]),
            pa.array([[nested[0].as_py()], []]),
        ),
        *(pa.array([2**62, 1], pa.time64("ns")), pa.array([GOOD, None], pa.large_binary())),
    ]
    names = [
        "image",
        "caption",
        "question",
        "answer",
        "label",
        "question_id",
        "images",
        "sentence",
        "text",
        "a\x1bb",
        "identifier",
    ]
    chosen = ["image", rng.choice(names[1:]), *(rng.choice(names) for _ in range(rng.randrange(4)))]
    values = [
        columns[0] if rng.random() < 0.5 else rng.choice(columns),
        *(rng.choice(columns) for _ in chosen[1:]),
    ]
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_arrays(values, chosen), file)
    return {"rows.parquet": file.getvalue(), "0.png": GOOD, "1.png": GOOD}


def tar_of(members: Mapping[str, bytes], form: int = tarfile.USTAR_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def check(spec: str, *flags: str) -> Action:
    """What `eve data check` does; broken rows are its exit status 1."""
    return lambda folder: eve_command(["data", "check", str(folder / spec), *flags])


def train_on(spec: str, task: TaskConfig | None, **data: Any) -> Action:
    """Read, decode and tokenise rows as training and validation do."""

    def read(folder: Path) -> None:
        config = tiny_config(
            task=task,
            data={
                "train": (str(folder / spec),),
                "val": ("held-out",),
                "crop_scale": (0.5, 1),
                **data,
            },
        )
        kind = task_class(type(config.task))
        sources, val_sources = open_train_and_val(config, kind.dataset.kind_of(config))
        prepared = kind.prepare(config, sources, None)
        dataset = kind.dataset(prepared.sources, config, TOKENIZER, training=True)
        samples = [dataset[0, 0, row] for row in range(min(len(prepared.sources[0]), NUM_ROWS))]
        dataset.collate(samples)
        val = evaluator_class(type(config.task)).dataset(val_sources, config, TOKENIZER)
        val.collate([val[position] for position in val.eval_batches(4, 0, 1)[0]])
        for error in (error for sample in samples for error in sample.skipped):
            raise error  # its message is looked at

    return read


def files_in(folder: Path) -> Files:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def table(
    file: str,
    content: bytes,
    task: TaskConfig | None = None,
    others: Files = IMAGES,
    part: str = "",
    **more: Any,
) -> Reader:
    """Return the reader of one file, which is damaged, next to others."""
    actions = {"check": check(file + part), "train": train_on(file + part, task)}
    return Reader(
        files={file: content, **others}, **{"targets": (file,), "actions": actions, **more}
    )


def parquet_of(rows: list[dict[str, Any]]) -> bytes:
    parquet.write_table(pa.Table.from_pylist(rows), file := io.BytesIO(), row_group_size=2)
    return file.getvalue()


def data_readers(base: Path) -> dict[str, Reader]:
    """Return the readers of data."""
    return (
        image_readers(base)
        | table_readers()
        | published_readers()
        | shard_readers()
        | text_readers()
    )


def image_readers(base: Path) -> dict[str, Reader]:
    """Return the readers of images, with and without a table."""
    folder = {
        name: data
        for each, image in IMAGES.items()
        for name, data in ((each, image), (f"{each[0]}.txt", f"cat {each}\npet {each}".encode()))
    }
    image_actions = {
        "check": check("rows.jsonl"),
        "train": train_on("rows.jsonl", RetrievalConfig(), flip=True),
    }
    as_images = {
        "check": check(".", "--kind", "images"),
        "train": train_on(".", MASKED, modality="image"),
    }
    of_classes = {f"{'ab'[n % 2]}/{name}": data for n, (name, data) in enumerate(IMAGES.items())}
    of_folders = {"check": check(".", "--kind", "labels"), "train": train_on(".", CLASSES)}
    return {
        "folder": Reader(
            files=folder,
            actions={"check": check("."), "train": train_on(".", None)},
            may_rename=True,
        ),
        "images only": Reader(files=IMAGES, actions=as_images, may_rename=True),
        "images": Reader(files=source_images(), choose=one_image, actions=image_actions, weight=4),
        "big images": Reader(
            files=files_in(base / "big"),
            choose=one_image,
            actions=image_actions,
            weight=0.05,
            damage=lambda *a: a[2],
            has_sound=False,  # most need more memory than is allowed
        ),
        "class folders": Reader(files=of_classes, actions=of_folders, may_rename=True),
    }


def table_readers() -> dict[str, Reader]:
    """Return the readers of tables without a published layout."""
    asked = [
        {
            "image": name,
            "question": "what is it",
            "answer": ["cat", "dog"],
            "question_id": number,
            "answer_type": "other",
        }
        for number, name in enumerate(IMAGES)
    ]
    told = [
        {"images": [a, b], "sentence": "both are", "label": "True", "identifier": f"dev-1-{a[0]}-0"}
        for a, b in zip([*IMAGES][::2], [*IMAGES][1::2], strict=True)
    ]
    labelled = [
        {"image": name, "label": "ab"[number % 2], "text": "a text"}
        for number, name in enumerate(IMAGES)
    ]
    rows = "\n".join(f'{name},"a cat, {name}"' for name in IMAGES)
    embedded = [
        {"image": {"bytes": data, "path": None}, "caption": f"cat {len(data)}"}
        for data in IMAGES.values()
    ]
    labels = {
        "check": check("rows.jsonl", "--kind", "labels"),
        "train": train_on("rows.jsonl", CLASSES),
    }
    return {
        "jsonl": table("rows.jsonl", lines(CAPTIONED), weight=2),
        "jsonl questions": table("rows.jsonl", lines(asked), ASKED),
        "jsonl statements": table("rows.jsonl", lines(told), NLVR2Config()),
        "csv": table("rows.csv", b"image,caption\n" + rows.encode()),
        "tsv": table("rows.tsv", b"image\tcaption\n" + rows.replace(',"', '\t"').encode()),
        "json list": table("rows.json", json.dumps(CAPTIONED).encode()),
        "json pairs": table(
            "rows.json", json.dumps([[name, f"cat {name}"] for name in IMAGES]).encode()
        ),
        "parquet": table("rows.parquet", parquet_of(CAPTIONED)),
        "parquet bytes": table("rows.parquet", parquet_of(embedded), others={}),
        "parquet types": table(
            "rows.parquet", b"", choose=odd_table, has_sound=False, damage=lambda _, __, data: data
        ),
        "labels": table("rows.jsonl", lines(labelled), actions=labels),
        "names": Reader(
            files=IMAGES | {"rows.jsonl": lines(CAPTIONED)},
            actions={"any": read_odd_names},
            has_sound=False,
            targets=("rows.jsonl",),
            weight=0.5,
        ),
    }


def published_readers() -> dict[str, Reader]:
    """Return the readers of published layouts."""
    coco = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(IMAGES)],
        "annotations": [
            {"image_id": number, "caption": f"cat {number}", "id": number}
            for number in range(NUM_ROWS)
        ],
    }
    karpathy = [
        {"filename": name, "filepath": ".", "split": "train", "sentences": [{"raw": f"cat {name}"}]}
        for name in IMAGES
    ]
    vqa = [
        {"image_id": number, "question": "what is it", "question_id": number}
        for number in range(NUM_ROWS)
    ]
    answers = [
        {"question_id": n, "answer_type": "other", "answers": [{"answer": "cat"}] * 3}
        for n in range(NUM_ROWS)
    ]
    asked = json.dumps({"questions": vqa, "data_subtype": "train2014"}).encode()
    annotations = {"v2_annotations_train2014.json": json.dumps({"annotations": answers}).encode()}
    of_coco = {
        f"train2014/COCO_train2014_{number:012}.jpg": encode("JPEG") for number in range(NUM_ROWS)
    } | annotations
    nlvr2 = [
        {"identifier": f"dev-{n}-0-0", "sentence": "both are", "label": "True", "directory": n}
        for n in range(3)
    ]
    of_nlvr2 = {f"dev/dev-{n}-0-img{side}.png": GOOD for n in range(3) for side in (0, 1)}
    questions = "v2_questions_train2014.json"
    return {
        "coco": table("captions_train2014.json", json.dumps(coco).encode()),
        "karpathy": table("rows.json", json.dumps({"images": karpathy}).encode(), part="#train"),
        "vqa2": table(questions, asked, ASKED, of_coco),
        "vqa2 annotations": table(questions, asked, ASKED, of_coco, targets=tuple(annotations)),
        "nlvr2": table("dev.json", lines(nlvr2), NLVR2Config(), of_nlvr2),
    }


def shard_readers() -> dict[str, Reader]:
    """Return the readers of tar shards."""
    members = {
        f"{n:04}.{end}": data
        for n in range(4)
        for end, data in [
            ("png", IMAGES[f"{n}.png"]),
            ("txt", b"cat %d" % n),
            ("json", b'{"caption": "a dog"}'),
        ]
    }
    pax = tar_of(
        {f"ü{'x' * 120}{name}": data for name, data in members.items()}, tarfile.PAX_FORMAT
    )
    return {
        "tar": table("a.tar", tar_of(members), others={}, weight=2),
        "tar pax": table("a.tar", pax, others={}),
        "tar index": table(
            "a.tar",
            tar_of(members),
            others={},
            afterwards=damage_index,
            damage=lambda _, __, data: data,
        ),
    }


def text_readers() -> dict[str, Reader]:
    """Return the readers of texts, lists of answers and tokenizers."""
    vocab = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "##s"]).encode()
    as_texts = {
        "check": check("rows.txt", "--kind", "texts"),
        "tokenizer": tokenizer_of("rows.txt"),
    }
    answers = {
        "answers.json": json.dumps(["cat", "dog"]).encode(),
        "a.txt": lines([{"answer": "cat", "label": 0}]),
    }
    from_json, from_text = (
        table(file, data, others={}, actions={"read": use_answers(file)})
        for file, data in answers.items()
    )
    tokenizer = {"load": use_tokenizer("tokenizer.json")}
    return {
        "txt": table("rows.txt", "\n".join(CAPTIONS).encode(), others={}, actions=as_texts),
        "answers json": from_json,
        "answers txt": from_text,
        "tokenizer.json": table(
            "tokenizer.json", TOKENIZER.to_json().encode(), others={}, actions=tokenizer, weight=2
        ),
        "vocab.txt": table(
            "vocab.txt", vocab, others={}, actions={"load": use_tokenizer("vocab.txt")}
        ),
    }


def damage_index(rng: Random, folder: Path) -> None:
    """Let a tar have its index, and damage that."""
    tar = folder / "a.tar"
    if tar.is_symlink() or not tar.is_file() or not tar.stat().st_size:
        return  # something else is in its place
    find_index(tar, shard_stamp(tar))
    index = folder / f"a.tar{INDEX_SUFFIX}"
    index.write_bytes(mutate(rng, "", index.read_bytes()))


def read_odd_names(folder: Path) -> None:
    """Give what the table holds as names of sources and of columns."""
    table = folder / "rows.jsonl"
    rng = Random(table.read_bytes() if table.is_file() else b"")
    name = rng.choice(
        [*TEXTS, "rows.jsonl", odd_name(rng, "rows.jsonl").decode("utf-8", "surrogateescape")]
    )
    flag = rng.choice(("--image-column", "--text-column", "--label-column", "--image-root"))
    paths = [str(folder / name), f"{folder / 'rows.json'}#{name}"]
    if rng.random() < 0.5:
        eve_command(["data", "check", str(folder / "rows.jsonl"), f"{flag}={name}"])
    else:
        train_on(rng.choice(paths), None)(folder)


def use_answers(file: str) -> Action:
    return lambda folder: read_answers(folder / file)


def use_tokenizer(file: str) -> Action:
    """Load a tokenizer, build a model for it, and encode texts."""

    def use(folder: Path) -> None:
        tokenizer = Tokenizer.load(folder / file)
        with torch.device("meta"):
            build_task(tiny_config(), tokenizer)
        for text in (CAPTIONS[0], "Ünïcode ☃ 漢字 \u200b", "", "a" * 1000):
            assert tokenizer.encode(text, 12)[0].max(initial=0) < tokenizer.vocab_size
            tokenizer.encode_with_masks(f"a [MASK] {text}", 12)
        Tokenizer.from_json(tokenizer.to_json())

    return use


def tokenizer_of(file: str) -> Action:
    out = "../tokenizer.json"
    return lambda folder: eve_command(
        [
            "tokenizer",
            "train",
            str(folder / file),
            "--out",
            str(folder / out),
            "--vocab-size",
            "300",
        ]
    )


TOKENIZER = tiny_tokenizer()
ASKED = VQAConfig(min_answer_count=1)
MASKED = replace(tiny_config().task, mlm_weight=0.0)
CLASSES = ClassificationConfig(inputs="image")
