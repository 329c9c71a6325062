"""Medical datasets in files written by hand as their publishers write them."""

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eve_vl.data.kinds.labels import LabeledExample
from eve_vl.data.kinds.questions import ImageQuestion
from eve_vl.data.readers.open_source import open_source
from eve_vl.metrics.vqa import accuracy_of, soft_targets
from eve_vl.systems.medical.readers.chexpert import CHEXPERT_LABELS
from eve_vl.utils.console import print_once
from eve_vl.utils.errors import BadSampleError, UserError
from helpers.color_cards import guess_kind

RAD = {
    "qid": 1,
    "image_name": "synpic54610.jpg",
    "question": "Are regions infarcted?",
    "answer": "Yes",
    "answer_type": "CLOSED",
    "question_type": "PRES",
    "phrase_type": "freeform",
}
SLAKE = {
    "img_id": 1,
    "img_name": "xmlab1/source.jpg",
    "question": "What modality is used?",
    "answer": "MRI",
    "q_lang": "en",
    "location": "Abdomen",
    "modality": "MRI",
    "answer_type": "OPEN",
    "base_type": "vqa",
    "content_type": "Modality",
    "triple": ["vhead", "_", "_"],
    "qid": 0,
}
SLAKE_CHINESE = SLAKE | {"qid": 1, "q_lang": "zh", "question": "这是什么模态?"}
FIGURE = {
    "pdf_hash": "a1",
    "fig_uri": "0-Figure1-1.png",
    "s2_caption": "Fig. 1: CT of a lung",
    "s2orc_references": ["see  the CT"],
    "radiology": True,
}
MELINDA = "figure_file,caption,i_meth,p_meth,i_meth_label,p_meth_label\n"
CHEXPERT = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung "
    "Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural "
    "Effusion,Pleural Other,Fracture,Support Devices\n"
    "{0}/patient1/study1/view1.jpg,Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0\n"
    "{0}/patient2/study2/view1.jpg,Female,87,Frontal,AP,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,\n"
    "{0}/patient2/study1/view2.jpg,Female,83,Lateral,,,,,1.0,,,-1.0,,,,,,1.0,\n"
    "{0}/patient3/study1/view1.jpg,Male,41,Frontal,AP,,,,,,-1.0,,,,0.0,,,,\n"
).replace("{0}", "CheXpert-v1.0-small/train")
CHEXPERT_IMAGES = tuple(re.findall(r"^CheXpert.*?jpg", CHEXPERT, re.MULTILINE))
FIVE = f"imgpath,report,{','.join(CHEXPERT_LABELS)}\n"
FIVE_STATES = ",1.0" + 13 * ","


def write_files(root: Path, texts: dict[str, str], images: tuple[str, ...] = ()) -> Path:
    for name in (*texts, *images):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (root / name).write_text(text)
    for name in images:
        Image.new("L", (8, 8)).save(root / name)
    return root


def json_lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def open_layout(name: str | Path, **options: Any) -> Any:
    kind = options.pop("kind", None) or guess_kind(name)
    return open_source(str(name), kind=kind, **options)


def problems(source: Any) -> dict[str, str]:
    """Return the reason why each broken row cannot be used, by the row's name."""
    reasons = {}
    for index in range(len(source)):
        try:
            source[index]
        except BadSampleError as error:
            assert error.where not in reasons
            reasons[error.where] = error.reason
    return reasons


@pytest.fixture(autouse=True)
def forget_printed_lines():
    print_once.cache_clear()


# One layout after the other


def test_roco(tmp_path: Path):
    captions = "ROCO_00002\tChest X-ray  showing a mass\nROCO_00003\tabdominal CT\n"
    texts = {"validation/radiology/captions.txt": captions}
    images = tuple(f"validation/radiology/images/ROCO_0000{number}.jpg" for number in (2, 3))
    root = write_files(tmp_path / "roco", texts, images)
    for name in (f"{root}#val", root / "validation", root / "validation/radiology/captions.txt"):
        first, second = open_layout(name)
        assert first.captions == ("Chest X-ray showing a mass",)
        assert second.captions == ("abdominal CT",)
        assert second.where == "validation/radiology/captions.txt:2"
    with pytest.raises(UserError, match=r"roco: has no split 'train'; name one: roco#val"):
        open_layout(f"{root}#train")


def test_medicat_is_split_by_paper(tmp_path: Path, capsys):
    """Of 25 papers with three radiology figures each, a tenth is held out twice."""
    file = "release/s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl"
    rows = []
    for paper in range(25):
        for figure in range(4):
            row = FIGURE | {"pdf_hash": f"{paper:x}", "fig_uri": f"{figure}-Figure1-1.png"}
            rows.append(row | {"radiology": figure < 3})
    images = tuple(f"figures/{row['pdf_hash']}_{row['fig_uri']}" for row in rows)
    root = write_files(tmp_path / "medicat", {file: json_lines(*rows)}, images)
    num_figures = Counter()
    split_of_paper = defaultdict(set)
    for split in ("train", "val", "test"):
        for row in open_layout(f"{root}#{split}"):
            paper = row.image.path.name.split("_")[0]
            num_figures[split] += 1
            split_of_paper[paper].add(split)
            assert row.captions == ("Fig. 1: CT of a lung", "see the CT")
    assert num_figures == {"train": 57, "val": 9, "test": 9}
    assert len(split_of_paper) == 25
    assert max(map(len, split_of_paper.values())) == 1
    pattern = r"(\d+) figures are not marked as radiology and are left out"
    assert sum(map(int, re.findall(pattern, capsys.readouterr().out))) == 25
    assert len(open_layout(root / file)) == 75


def test_vqa_rad(tmp_path: Path, capsys):
    number = RAD | {"qid": 2, "answer": 3, "answer_type": "OPEN "}
    texts = {
        "trainset.json": json.dumps([RAD, number]),
        "valset.json": json.dumps([RAD]),
        "testset.json": json.dumps([RAD]),
    }
    root = write_files(tmp_path / "rad", texts, ("images/synpic54610.jpg",))
    closed, open_ended = open_layout(f"{root}#train")
    assert closed == ImageQuestion(
        image=closed.image,
        question="Are regions infarcted?",
        answers=("Yes",),
        question_id=1,
        answer_type="CLOSED",
        content_type="PRES",
        where="trainset.json row 1",
    )
    assert (open_ended.answers, open_ended.answer_type) == (("3",), "OPEN")
    assert not capsys.readouterr().out
    for split, copied_file in (("val", "testset.json"), ("test", "valset.json")):
        open_layout(f"{root}#{split}")
        open_layout(root / f"{split}set.json")
        (line,) = capsys.readouterr().out.splitlines()
        assert f"is a copy of {copied_file}" in line
        assert "--data.val held-out" in line
    write_files(root, {"testset.json": json.dumps([RAD | {"qid": 9}])})
    open_layout(f"{root}#test")
    assert not capsys.readouterr().out


def test_slake_in_either_language(tmp_path: Path, capsys):
    texts = {
        "train.json": json.dumps([SLAKE, SLAKE_CHINESE]),
        "validation.json": json.dumps([SLAKE_CHINESE]),
    }
    root = write_files(tmp_path / "slake", texts, ("imgs/xmlab1/source.jpg",))
    english = "What modality is used?"
    chinese = "这是什么模态?"
    for name, questions in {
        f"{root}#train": [english],
        f"{root}#train-zh": [chinese],
        f"{root}#train-all": [english, chinese],
        f"{root}#val-zh": [chinese],
        f"{root}/train.json": [english],
    }.items():
        source = open_layout(name)
        assert [row.question for row in source] == questions
        assert source[0].content_type == "Modality"
    printed = capsys.readouterr().out
    assert "train.json: 1 questions in zh are left out; slake#train-zh has these" in printed
    assert "train.json: 1 questions in en are left out; slake#train has these" in printed
    with pytest.raises(UserError, match=r"validation.json: holds no rows of SLAKE"):
        open_layout(f"{root}#val")
    message = r"slake: holds several splits; name one: slake#train, slake#train-zh, slake#train-a"
    with pytest.raises(UserError, match=message):
        open_layout(root)


def test_medvqa(tmp_path: Path):
    texts = {
        "train/QA/Modality.csv": (
            "synpic54082|what modality is shown?|ct#ct with contrast\n"
            "synpic1|is this a t1 weighted image?|no\n"
        ),
        "train/QA/Plane.csv": "synpic1|in what plane?|axial\n",
        "test/QA/all.csv": (
            "synpic54082|modality|what modality is shown?|ct\n"
            "synpic54082|plane|what plane is this?|axial (t2) mri#axial\n"
        ),
    }
    train_images = ("train/images/synpic54082.jpg", "train/images/synpic1.jpg")
    images = (*train_images, "test/images/synpic54082.jpg")
    root = write_files(tmp_path / "medvqa", texts, images)
    rows = list(open_layout(f"{root}#train"))
    assert [(row.question_id, row.content_type, row.where) for row in rows] == [
        (0, "Modality", "train/QA/Modality.csv:1"),
        (1, "Modality", "train/QA/Modality.csv:2"),
        (2, "Plane", "train/QA/Plane.csv:1"),
    ]
    alternatives = rows[0].answers
    assert soft_targets(alternatives) == {"ct": 1.0, "ct with contrast": 1.0}
    assert accuracy_of("ct", alternatives) == accuracy_of("ct with contrast", alternatives) == 1
    assert accuracy_of("mr", alternatives) == 0
    assert rows[1].answers == ("no",)
    ct, plane = open_layout(f"{root}#test")
    assert (ct.content_type, ct.answers, plane.content_type) == ("Modality", ("ct",), "Plane")
    assert soft_targets(plane.answers) == {
        "axial t2 mri": 1.0,
        "axial mri": 1.0,
        "axial": 1.0,
    }


def test_melinda(tmp_path: Path):
    table = MELINDA + 'a.png,"blots, two",0,1,exp,western\n'
    without_labels = "figure_file,caption,i_meth,p_meth,i_meth_label\na.png,b,0,1,exp\n"
    texts = {"train.csv": table, "dev.csv": table, "test.csv": without_labels}
    root = write_files(tmp_path / "melinda", texts, ("melinda_images/a.png",))
    (row,) = open_layout(f"{root}#train")
    assert row == LabeledExample(
        image=row.image, text="blots, two", labels=("western",), where="train.csv:2"
    )
    assert open_layout(f"{root}#val", label_column="i_meth_label")[0].labels == ("exp",)
    assert open_layout(f"{root}#train", kind="captions")[0].captions == ("blots, two",)
    message = r"test.csv: has no column 'p_meth_label' \(columns: figure_file, caption, i_meth"
    with pytest.raises(UserError, match=message):
        open_layout(f"{root}#test")


def test_chexpert(tmp_path: Path, capsys):
    folder = "CheXpert-v1.0-small"
    root = write_files(tmp_path, {f"{folder}/train.csv": CHEXPERT}, CHEXPERT_IMAGES)
    for name in (f"{root}#train", f"{root}/{folder}#train", root / folder / "train.csv"):
        first, second = open_layout(name)
        assert (first.where, first.labels) == ("train.csv:2", ("No Finding", "Support Devices"))
        assert (second.where, second.labels) == ("train.csv:3", ("Lung Opacity", "Fracture"))
    assert (
        "left out are 1 lateral views and 1 rows without a label that is 1; 3 rows have "
        "uncertain labels (-1)"
    ) in capsys.readouterr().out


def test_chexpert_without_labels_still_has_images_and_reports(tmp_path: Path):
    header, *lines = CHEXPERT.splitlines()
    table = f"{header},report\n"
    for line, report in zip(lines, "abcd", strict=True):
        table += f"{line},{report}\n"
    root = write_files(tmp_path, {"five.csv": table}, CHEXPERT_IMAGES)
    frontal = ["five.csv:2", "five.csv:3", "five.csv:5"]
    for kind, expected in {
        "labels": frontal[:2],
        "captions": frontal,
        "images": frontal,
        "findable": frontal,
    }.items():
        assert [row.where for row in open_layout(root / "five.csv", kind=kind)] == expected
    row = open_layout(root / "five.csv", kind="captions")[2]
    assert (row.captions, row.labels, row.absent) == (("d",), (), ("Pneumothorax",))


def test_folders_and_tables_of_no_medical_layout_are_read_as_before(tmp_path: Path):
    table = json.dumps([{"image": "a/one.png", "caption": "a dot"}])
    write_files(tmp_path, {"a/one.txt": "a dot", "train.json": table}, ("a/one.png",))
    assert open_layout(tmp_path / "a")[0].captions == ("a dot",)
    assert open_layout(tmp_path / "train.json")[0].captions == ("a dot",)
    with pytest.raises(UserError, match="leave out #train"):
        open_layout(f"{tmp_path / 'a'}#train")


# Broken rows and broken files


@dataclass(frozen=True)
class PartlyBroken:
    """Files with a usable first row and broken rows, whose names and reasons are listed."""

    source: str
    texts: dict[str, str]
    image: str
    problems: dict[str, str]


PARTLY_BROKEN = {
    "roco": PartlyBroken(
        source="#train",
        texts={
            "train/radiology/captions.txt": "R1\tgood\nR2\tno image\nR1\nR1\t\n",
        },
        image="train/radiology/images/R1.jpg",
        problems={
            "train/radiology/captions.txt:2": "no image",
            "train/radiology/captions.txt:3": "line has 0 tabs, expected one",
            "train/radiology/captions.txt:4": "is empty",
        },
    ),
    "medicat": PartlyBroken(
        source="/figures.jsonl",
        texts={
            "figures.jsonl": json_lines(
                FIGURE,
                FIGURE | {"pdf_hash": "a2"},
                {name: FIGURE[name] for name in ("pdf_hash", "fig_uri", "radiology")},
                FIGURE | {"s2_caption": ""},
            )
        },
        image="figures/a1_0-Figure1-1.png",
        problems={
            "figures.jsonl:2": "no image",
            "figures.jsonl:3": "no field 's2_caption'",
            "figures.jsonl:4": "is empty",
        },
    ),
    "vqa-rad": PartlyBroken(
        source="#train",
        texts={
            "trainset.json": json.dumps(
                [
                    RAD,
                    RAD | {"image_name": "missing.jpg"},
                    {name: value for name, value in RAD.items() if name != "answer"},
                    RAD | {"answer": " "},
                ]
            )
        },
        image="images/synpic54610.jpg",
        problems={
            "trainset.json row 2": "no image",
            "trainset.json row 3": "no field 'answer'",
            "trainset.json row 4": "answer is empty",
        },
    ),
    "slake": PartlyBroken(
        source="#train",
        texts={
            "train.json": json.dumps(
                [
                    SLAKE,
                    SLAKE | {"img_name": "missing.jpg"},
                    {name: value for name, value in SLAKE.items() if name != "answer"},
                    SLAKE | {"answer": ""},
                    SLAKE_CHINESE | {"q_lang": "en"},
                    SLAKE | {"q_lang": "de"},
                ]
            )
        },
        image="imgs/xmlab1/source.jpg",
        problems={
            "train.json row 2": "no image",
            "train.json row 3": "no field 'answer'",
            "train.json row 4": "answer is empty",
            "train.json row 5": "q_lang is en, but question or answer is in Chinese",
            "train.json row 6": "q_lang is 'de', expected en or zh",
        },
    ),
    "medvqa": PartlyBroken(
        source="#train",
        texts={
            "train/QA/Plane.csv": "s1|what?|axial\ns2|what?|axial\ns1|what?\ns1|what?|#\n",
        },
        image="train/images/s1.jpg",
        problems={
            "train/QA/Plane.csv:2": "no image",
            "train/QA/Plane.csv:3": "line has 2 fields, expected image|question|answer",
            "train/QA/Plane.csv:4": "answer is empty",
        },
    ),
    "melinda": PartlyBroken(
        source="#train",
        texts={
            "train.csv": MELINDA
            + "a.png,blots,0,1,exp,western\nb.png,blots,0,1,exp,western\n"
            + "a.png,blots,0,1,exp\na.png,,0,1,exp,western\n",
        },
        image="melinda_images/a.png",
        problems={
            "train.csv:3": "no image",
            "train.csv:4": "fields",
            "train.csv:5": "caption is empty",
        },
    ),
    "chexpert": PartlyBroken(
        source="/five.csv",
        texts={
            "five.csv": FIVE
            + f"a.png,good{FIVE_STATES}\n"
            + f"b.png,no image{FIVE_STATES}\n"
            + f"a.png,,{FIVE_STATES[1:]}\n"
            + f"a.png,few fields{FIVE_STATES[:-1]}\n"
            + f"a.png,bad label{FIVE_STATES.replace('1.0', '2.0')}\n",
        },
        image="a.png",
        problems={
            "five.csv:3": "no image",
            "five.csv:4": "report is empty",
            "five.csv:5": "fields",
            "five.csv:6": "No Finding is '2.0', expected 1, 0, -1 or nothing",
        },
    ),
}


@pytest.mark.parametrize("layout", PARTLY_BROKEN)
def test_every_broken_row_is_named_and_no_other(tmp_path: Path, layout: str):
    expected = PARTLY_BROKEN[layout]
    write_files(tmp_path, expected.texts, (expected.image,))
    source = open_layout(f"{tmp_path}{expected.source}", must_be_usable=False)
    assert len(source) == 1 + len(expected.problems)
    reasons = problems(source)
    assert reasons.keys() == expected.problems.keys()
    for where, reason in expected.problems.items():
        assert reason in reasons[where]


def damaged(content: bytes) -> list[bytes]:
    middle = len(content) // 2
    damages = [b"", b"\n", b"\xff\xfe", b"null", b"[]", b"[1, 2]", b"[{}]", b"{}", b'{"a"']
    damages += [content[:middle], content[1:], content + content]
    damages += [
        content.replace(b",", b"\t", 9),
        content.replace(b'"', b"", 3),
    ]
    return [*damages, content.replace(b"\n", b"\0\n")]


def with_odd_fields(path: Path) -> list[bytes]:
    """Return a JSON file with odd values in the fields of its first row."""
    if path.suffix == ".json":
        first_row, *rows = json.loads(path.read_text())
    elif path.suffix == ".jsonl":
        first_row, *rows = map(json.loads, path.read_text().splitlines())
    else:
        return []
    contents = []
    for name in first_row:
        for odd in (None, True, 3, 2.5, "", " ", "\ud800", "../x.png", [], [1], {}, {"a": 1}):
            odd_rows = [first_row | {name: odd}, *rows]
            text = json.dumps(odd_rows) if path.suffix == ".json" else json_lines(*odd_rows)
            contents.append(text.encode())
    return contents


@pytest.mark.parametrize("layout", PARTLY_BROKEN)
def test_any_content_is_read_or_an_error_for_people(tmp_path: Path, layout: str):
    files = PARTLY_BROKEN[layout]
    write_files(tmp_path, files.texts, (files.image,))
    (path,) = [tmp_path / name for name in files.texts]
    for content in [*damaged(path.read_bytes()), *with_odd_fields(path)]:
        path.write_bytes(content)
        for kind in ("captions", "questions", "labels"):
            try:
                source = open_source(f"{tmp_path}{files.source}", kind=kind, must_be_usable=False)
                problems(source)
            except UserError as error:
                assert "\n" not in str(error)
