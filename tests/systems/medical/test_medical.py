"""Medical layouts: files written by hand as their publishers write them, and phantoms written, read
and compared row by row."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eve_vl.data.kinds.labels import LabeledExample
from eve_vl.data.kinds.questions import ImageQuestion
from eve_vl.data.readers.open_source import open_source
from eve_vl.synthetic.disclaimers import source_note
from eve_vl.synthetic.write import write
from eve_vl.systems.medical.phantoms.generator import NO_MEDICINE
from eve_vl.systems.medical.phantoms.layouts import FIVE, LAYOUTS
from eve_vl.systems.medical.phantoms.rows import PhantomPairs, PhantomQuestions
from eve_vl.utils.console import print_once
from eve_vl.utils.errors import BadSampleError, UserError
from helpers.broken_rows import FAULTS, LANGUAGE, MISSING, break_rows
from helpers.color_cards import guess_kind
from helpers.medical_layouts import PANEL_KINDS, PANEL_LABELS, sample_panel

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
CHEXPERT = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung "
    "Opacity,Lung Lesion,Edema,"
    "Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural "
    "Other,Fracture,Support Devices\n"
    "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0\n"
    "CheXpert-v1.0-small/train/patient00002/study2/view1_frontal.jpg,Female,87,Frontal,AP,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,\n"
    "CheXpert-v1.0-small/train/patient00002/study1/view2_lateral.jpg,Female,83,Lateral,,,,,1.0,,,-1.0,,,,,,1.0,\n"
    "CheXpert-v1.0-small/train/patient00003/study1/view1_frontal.jpg,Male,41,Frontal,AP,,,,,,-1.0,,,,0.0,,,,\n"
)


def files(root: Path, texts: dict[str, Any], images: tuple[str, ...]) -> Path:
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(
            text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
        )
    for name in images:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(root / name)
    return root


def opened(name: str, **options: Any) -> Any:
    return open_source(name, kind=options.pop("kind", guess_kind(name)), **options)


def problems(source: Any) -> dict[str, str]:
    lines_of_problems = {}
    for index in range(len(source)):
        try:
            source[index]
        except BadSampleError as error:
            lines_of_problems[error.where] = error.reason
    return lines_of_problems


@pytest.fixture(autouse=True)
def forget_printed_lines():
    print_once.cache_clear()


# By hand


def test_roco(tmp_path: Path):
    captions = "ROCO_00002\tChest X-ray  showing a mass\nROCO_00003\tabdominal CT\n"
    texts = {"validation/radiology/captions.txt": captions}
    images = tuple(f"validation/radiology/images/ROCO_0000{number}.jpg" for number in (2, 3))
    root = files(tmp_path / "roco", texts, images)
    for name in (f"{root}#val", root / "validation", root / "validation/radiology/captions.txt"):
        source = opened(str(name))
        assert [row.captions for row in (source[0], source[1])] == [
            ("Chest X-ray showing a mass",),
            ("abdominal CT",),
        ]
        assert source[1].where == "validation/radiology/captions.txt:2"
    with pytest.raises(UserError, match=r"roco: has no split 'train'; name one: roco#val"):
        opened(f"{root}#train")


def test_medicat(tmp_path: Path, capsys):
    file = "release/s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl"
    rows = [
        {
            "pdf_hash": f"{paper:x}",
            "fig_uri": f"{figure}-Figure1-1.png",
            "s2_caption": f"Fig. {figure}: CT of paper {paper}",
            "s2orc_references": None if figure else ["see the CT"],
            "radiology": figure < 3,
        }
        for paper in range(25)
        for figure in range(4)
    ]
    images = tuple(f"figures/{row['pdf_hash']}_{row['fig_uri']}" for row in rows)
    root = files(tmp_path / "medicat", {file: "\n".join(map(json.dumps, rows))}, images)
    seen = {split: list(opened(f"{root}#{split}")) for split in ("train", "val", "test")}
    said = re.findall(
        r"(\d+) figures are not marked as radiology and are left out", capsys.readouterr().out
    )
    assert sum(map(int, said)) == 25
    papers = {
        split: {row.image.path.name.split("_")[0] for row in of_split}
        for split, of_split in seen.items()
    }
    assert (
        sum(map(len, papers.values())) == len(set.union(*papers.values())) == 25
    )  # no paper is in two splits
    assert [len(papers[split]) for split in ("val", "test")] == [
        3,
        3,
    ]  # a tenth of the figures, in whole papers
    assert sum(map(len, seen.values())) == 75 == len(opened(str(root / file)))
    first = next(row for rows in seen.values() for row in rows if row.where.endswith(":1"))
    assert first.captions == ("Fig. 0: CT of paper 0", "see the CT")


def test_vqa_rad(tmp_path: Path, capsys):
    number = RAD | {"qid": 2, "answer": 3, "answer_type": "OPEN "}
    texts = {"trainset.json": [RAD, number], "valset.json": [RAD], "testset.json": [RAD]}
    root = files(tmp_path / "rad", texts, ("images/synpic54610.jpg",))
    source = opened(f"{root}#train")
    assert source[0] == ImageQuestion(
        image=source[0].image,
        question="Are regions infarcted?",
        answers=("Yes",),
        question_id=1,
        answer_type="CLOSED",
        content_type="PRES",
        where="trainset.json row 1",
    )
    assert (source[1].answers, source[1].answer_type) == (("3",), "OPEN")
    assert not capsys.readouterr().out
    for split, wrong_name in (("val", "testset.json"), ("test", "valset.json")):
        opened(f"{root}#{split}")
        opened(str(root / f"{split}set.json"))
        said = capsys.readouterr().out.splitlines()
        assert len(said) == 1
        assert f"is a copy of {wrong_name}" in said[0] and "--data.val held-out" in said[0]
    files(root, {"testset.json": [RAD | {"qid": 9}]}, ())
    opened(f"{root}#test")
    assert not capsys.readouterr().out


def test_slake_in_either_language(tmp_path: Path, capsys):
    chinese = SLAKE | {"qid": 1, "q_lang": "zh", "question": "这是什么模态?", "answer": "MRI"}
    root = files(
        tmp_path / "slake",
        {"train.json": [SLAKE, chinese], "validation.json": [chinese]},
        ("imgs/xmlab1/source.jpg",),
    )
    for name, questions in (
        (f"{root}#train", [SLAKE["question"]]),
        (f"{root}#train-zh", [chinese["question"]]),
        (f"{root}#train-all", [SLAKE["question"], chinese["question"]]),
        (f"{root}#val-zh", [chinese["question"]]),
        (str(root / "train.json"), [SLAKE["question"]]),
    ):
        source = opened(name)
        assert [row.question for row in source] == questions
        assert {row.content_type for row in source} == {"Modality"}
    said = capsys.readouterr().out
    assert "train.json: 1 questions in zh are left out; slake#train-zh has these" in said
    assert "train.json: 1 questions in en are left out; slake#train has these" in said
    with pytest.raises(UserError, match=r"validation.json: holds no rows of SLAKE"):
        opened(f"{root}#val")
    with pytest.raises(
        UserError,
        match=r"slake: holds several splits; name one: slake#train, slake#train-zh, slake#train-a",
    ):
        opened(str(root))


def test_medvqa(tmp_path: Path):
    modality = (
        "synpic54082|what modality is shown?|ct#ct with contrast\n"
        "synpic1|is this a t1 weighted image?|no\n"
    )
    official = (
        "synpic54082|modality|what modality is shown?|ct\n"
        "synpic54082|plane|what plane is this?|axial (t2) mri#axial\n"
    )
    texts = {
        "train/QA/Modality.csv": modality,
        "train/QA/Plane.csv": "synpic1|in what plane?|axial\n",
        "test/QA/all.csv": official,
    }
    images = (
        "train/images/synpic54082.jpg",
        "train/images/synpic1.jpg",
        "test/images/synpic54082.jpg",
    )
    root = files(tmp_path / "medvqa", texts, images)
    rows = list(opened(f"{root}#train"))
    assert [(row.question_id, row.content_type, row.where) for row in rows] == [
        (0, "Modality", "train/QA/Modality.csv:1"),
        (1, "Modality", "train/QA/Modality.csv:2"),
        (2, "Plane", "train/QA/Plane.csv:1"),
    ]
    from eve_vl.metrics.vqa import accuracy_of, soft_targets

    assert soft_targets(rows[0].answers) == {"ct": 1.0, "ct with contrast": 1.0}
    assert [
        accuracy_of(answer, rows[0].answers) for answer in ("ct", "ct with contrast", "mr")
    ] == [1.0, 1.0, 0.0]
    assert rows[1].answers == ("no",)
    ct, plane = opened(f"{root}#test")
    assert (ct.content_type, ct.answers, plane.content_type) == ("Modality", ("ct",), "Plane")
    assert soft_targets(plane.answers) == {"axial t2 mri": 1.0, "axial mri": 1.0, "axial": 1.0}


def test_melinda(tmp_path: Path):
    table = (
        "figure_file,caption,i_meth,p_meth,i_meth_label,p_meth_label\n"
        'a.png,"blots, two",0,1,exp,western\n'
    )
    root = files(
        tmp_path / "melinda", {"train.csv": table, "dev.csv": table}, ("melinda_images/a.png",)
    )
    (row,) = opened(f"{root}#train")
    assert row == LabeledExample(
        image=row.image, text="blots, two", labels=("western",), where="train.csv:2"
    )
    assert opened(f"{root}#val", label_column="i_meth_label")[0].labels == ("exp",)
    assert opened(f"{root}#train", kind="captions")[0].captions == ("blots, two",)
    files(
        root, {"test.csv": "figure_file,caption,i_meth,p_meth,i_meth_label\na.png,b,0,1,exp\n"}, ()
    )
    with pytest.raises(
        UserError,
        match=r"test.csv: has no column 'p_meth_label' \(columns: figure_file, caption, i_meth",
    ):
        opened(f"{root}#test")


def test_chexpert(tmp_path: Path, capsys):
    images = tuple(line.split(",")[0] for line in CHEXPERT.splitlines()[1:])
    root = files(
        tmp_path,
        {"CheXpert-v1.0-small/train.csv": CHEXPERT, "CheXpert-v1.0-small/valid.csv": CHEXPERT},
        images,
    )
    expected = [
        ("train.csv:2", ("No Finding", "Support Devices")),
        ("train.csv:3", ("Lung Opacity", "Fracture")),
    ]
    for name in (
        f"{root}#train",
        f"{root}/CheXpert-v1.0-small#train",
        f"{root}/CheXpert-v1.0-small/train.csv",
    ):
        assert [(row.where, row.labels) for row in opened(name)] == expected
    said = capsys.readouterr().out
    assert (
        "left out are 1 lateral views and 1 rows without a label that is 1; 3 rows have "
        "uncertain labels (-1)" in said
    )
    files(root, {"CheXpert-v1.0-small/valid.csv": CHEXPERT.replace("AP,1.0", "AP,2.0")}, ())
    assert problems(opened(f"{root}#val")) == {
        "valid.csv:2": "No Finding is '2.0', expected 1, 0, -1 or nothing"
    }


def test_chexpert_without_labels_still_has_images_and_reports(tmp_path: Path):
    table = "".join(
        f"{line},{said}\n"
        for line, said in zip(CHEXPERT.splitlines(), ("report", *"abcd"), strict=True)
    )
    root = files(
        tmp_path, {"five.csv": table}, tuple(line.split(",")[0] for line in table.splitlines()[1:])
    )
    rows = {
        kind: list(opened(f"{root}/five.csv", kind=kind))
        for kind in ("labels", "captions", "images", "findable")
    }
    lines = {kind: [row.where for row in rows] for kind, rows in rows.items()}
    assert lines.pop("labels") == ["five.csv:2", "five.csv:3"]
    assert list(lines.values()) == [["five.csv:2", "five.csv:3", "five.csv:5"]] * 3
    assert [(row.captions, row.labels, row.absent) for row in rows["captions"]][2] == (
        ("d",),
        (),
        ("Pneumothorax",),
    )


def test_other_folders_and_tables_are_what_they_were(tmp_path: Path):
    files(
        tmp_path,
        {"a/one.txt": "a dot", "train.json": [{"image": "a/one.png", "caption": "a dot"}]},
        ("a/one.png",),
    )
    assert opened(str(tmp_path / "a"))[0].captions == ("a dot",)
    assert opened(str(tmp_path / "train.json"))[0].captions == ("a dot",)
    with pytest.raises(UserError, match="leave out #train"):
        opened(f"{tmp_path / 'a'}#train")


# Written and read

SPLIT = {layout: "" if layout == "chexpert-5x200" else "#train" for layout in LAYOUTS}
COMPARED = ("roco", "vqa-rad", "slake", "melinda", "chexpert")


@pytest.mark.parametrize("layout", COMPARED)
def test_what_is_written_is_read_row_by_row(tmp_path: Path, layout):
    write("phantoms", layout, tmp_path / layout, num_rows=15)
    source = opened(
        f"{tmp_path / layout}#train",
        kind="questions"
        if layout in ("vqa-rad", "slake")
        else guess_kind(f"{tmp_path / layout}#train"),
    )
    pairs = PhantomPairs()
    questions = PhantomQuestions()
    rows = {int(row.where.rpartition(":" if ":" in row.where else " ")[2]): row for row in source}
    for number, row in rows.items():
        if layout == "roco":
            assert row.captions[0] == pairs.report(number - 1).text
            image = pairs[number - 1].image
        elif layout == "melinda":
            pixels, caption, label, _ = sample_panel("train", 0, number - 2)
            assert (row.text, row.labels) == (caption, (label,))
            np.testing.assert_array_equal(np.asarray(Image.open(row.image.path)), pixels)
            continue
        elif layout == "chexpert":
            states = pairs.report(number - 2).labels
            assert row.labels == tuple(
                label for label, state in states.items() if state == 1
            ) or set(row.labels) == {label for label, state in states.items() if state == 1}
            image = pairs[number - 2].image
        else:
            asked = questions[number - 1]
            fields = ("question", "answers", "answer_type", "content_type")
            assert [getattr(row, name) for name in fields] == [
                getattr(asked, name) for name in fields
            ]
            image = asked.image
        drawn: Any = image
        difference = (
            np.asarray(Image.open(row.image.path).convert("L"), dtype=float) - drawn.pixels[:, :, 0]
        )
        assert np.abs(difference).mean() < 3  # JPEG
    usable = [index for index in range(15) if 1 in pairs.report(index).labels.values()]
    count = {"slake": 10, "chexpert": len(usable)}.get(layout, 15)
    assert len(rows) == len(source) == count


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_says_that_it_is_no_medicine_and_readers_pass_over_that(
    tmp_path: Path, layout
):
    write("phantoms", layout, folder := tmp_path / layout, num_rows=10)
    name = f"{folder}#train" if layout != "chexpert-5x200" else str(folder)
    marker = folder / "PHANTOMS.txt"
    rows = list(opened(name))
    tables = [path for end in ("*.csv", "*.json*", "captions.txt") for path in folder.rglob(end)]
    assert rows and tables
    assert marker.read_text() == f"{NO_MEDICINE}\n"
    for source in (name, *map(str, tables)):
        assert source_note(["scenes", source]) == NO_MEDICINE
    assert source_note([str(tmp_path), "~nobody-of-this-name/rad#train"]) == ""
    marker.unlink()
    assert list(opened(name)) == rows
    assert source_note([name, *map(str, tables)]) == ""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_broken_row_is_named_and_no_other(tmp_path: Path, layout):
    num_rows = 12 if layout == "chexpert-5x200" else 60
    write("phantoms", layout, tmp_path / layout, num_rows=num_rows)
    broken = break_rows(tmp_path / layout, layout, 0.3)
    splits = (
        ("",)
        if layout == "chexpert-5x200"
        else ("#train", "#val") + ("#test",) * (layout != "chexpert")
    )
    counts: Counter[str] = Counter()
    names: Counter[str] = Counter()
    for split in splits:
        source = opened(f"{tmp_path / layout}{split}", must_be_usable=False)
        named = problems(source)
        rows = {index: source.where(index) for index in range(len(source))}
        names.update(rows.values())
        listed = {
            row.row: row
            for row in broken
            if row.row in rows.values() and _is_of(row.file, split, layout)
        }
        at = {where.split(",")[0]: reason for where, reason in named.items()}
        assert set(at) == set(listed)
        for where, reason in at.items():
            words = {
                MISSING: "no image",
                "lost column": ("no field", "fields", "tabs"),
                "empty text": "is empty",
                LANGUAGE: "in Chinese",
            }[listed[where].fault]
            assert any(word in reason for word in ([words] if isinstance(words, str) else words)), (
                where,
                reason,
            )
            counts[listed[where].fault] += 1
    assert max(names.values()) == 1  # a name says the split too
    expected = {*FAULTS, *([LANGUAGE] if layout == "slake" else [])} - (
        {"empty text"} if layout == "chexpert" else set()
    )
    assert set(counts) == expected


def _is_of(file: str, split: str, layout: str) -> bool:
    if layout in ("medicat", "chexpert-5x200"):
        return True
    names = {"#train": ("train",), "#val": ("val", "valid", "validate", "dev"), "#test": ("test",)}[
        split
    ]
    parts = [
        part.removesuffix("set.json").removesuffix(".json").removesuffix(".csv")
        for part in file.split("/")
    ]
    return any(part in names for part in parts)


def test_the_5x200_twin_has_exactly_one_of_five_findings(tmp_path: Path):
    write("phantoms", "chexpert-5x200", tmp_path / "five", num_rows=4)
    rows = list(opened(str(tmp_path / "five")))
    assert Counter(row.labels for row in rows) == {(label,): 4 for label in FIVE}
    write("phantoms", "chexpert-5x200", tmp_path / "again", num_rows=4)
    names = [(tmp_path / folder / "chexpert_5x200.csv").read_text() for folder in ("five", "again")]
    assert names[0] == names[1]  # the list is on the disk, and the same for everybody
    assert len({row.image.path.name for row in rows}) == len(rows)
    prompts = json.loads((tmp_path / "five" / "prompts.json").read_text())
    assert list(prompts) == list(FIVE)
    told = {PhantomPairs().report(index).text for index in range(2000)}
    assert not [
        text
        for texts in prompts.values()
        for text in texts
        if any(text in report for report in told)
    ]


def test_a_panels_label_needs_both_image_and_caption():
    panels = [sample_panel("train", 0, index)[1:] for index in range(1200)]
    labels = Counter(label for _, label, _ in panels)
    coarse = Counter(coarse for *_, coarse in panels)
    assert set(labels) == set(PANEL_LABELS) and max(labels.values()) < 1.5 * min(labels.values())
    verbs = [caption.split(" was ")[1].split()[0] for caption, *_ in panels]
    assert len({(verb, kind) for verb, (*_, kind) in zip(verbs, panels, strict=True)}) == len(
        PANEL_LABELS
    )
    assert max(coarse.values()) / len(panels) < 1.3 / len(PANEL_KINDS)
    assert all(
        label == f"{verb} {kind}" for verb, (_, label, kind) in zip(verbs, panels, strict=True)
    )


# Commands


def test_the_command_line_writes_layouts_and_checks_them(eve):
    done = eve("data", "write", "phantoms", "vqa-rad", "rad", "--rows", 20)
    assert done.returncode == 0
    assert "phantoms as vqa-rad" in done.stdout and "says nothing about medicine" in done.stdout
    assert eve("data", "check", "rad#train").returncode == 0
    break_rows(Path("rad"), "vqa-rad", 0.2)
    done = eve("data", "check", "rad#train")
    assert done.returncode == 1
    assert "answer types        " in done.stdout
    assert (
        done.stdout.count("broken: trainset.json row")
        == int(done.stdout.split("broken")[1].split()[0])
        > 0
    )
    for words, complaint in (
        ("rad rad2", "no layout 'rad'; did you mean 'vqa-rad'?"),
        ("vqa-rad rad", "rad: is there already; name a new or an empty folder"),
    ):
        done = eve("data", "write", "phantoms", *words.split())
        assert done.returncode == 2
        assert complaint in done.stderr


# Anything

ODD = (None, True, 3, 2.5, "", " ", "\ud800", "../x.png", [], [1], {}, {"a": 1})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_content_is_read_or_an_error_for_people(tmp_path: Path, layout):
    write("phantoms", layout, tmp_path / "good", num_rows=5)
    name = f"{tmp_path / 'good'}{SPLIT[layout]}"
    texts = [
        path
        for path in (tmp_path / "good").rglob("*")
        if path.suffix in (".txt", ".json", ".jsonl", ".csv")
    ]
    for path in texts:
        whole = path.read_bytes()
        bad = [
            whole[: len(whole) // 2],
            b"",
            b"\n",
            b"\xff\xfe",
            b"null",
            b"[]",
            b"[1, 2]",
            b"[{}]",
            b"{}",
            b'{"a"',
            whole[1:],
        ]
        bad += [
            whole.replace(b",", b"\t", 9),
            whole.replace(b'"', b"", 3),
            whole.replace(b"\n", b"\0\n"),
            whole + whole,
        ]
        for content in [*bad, *_with_odd_fields(path, whole)]:
            path.write_bytes(content)
            for kind in ("captions", "questions", "labels", "images", "texts"):
                try:
                    problems(open_source(name, kind=kind, must_be_usable=False))
                except UserError as error:
                    assert "\n" not in str(error)
        path.write_bytes(whole)


def _with_odd_fields(path: Path, whole: bytes) -> list[bytes]:
    if path.suffix == ".json" and path.name != "prompts.json":
        rows = json.loads(whole)
        return [
            json.dumps([{**rows[0], name: odd}, *rows[1:]]).encode()
            for name in rows[0]
            for odd in ODD
        ]
    if path.suffix == ".jsonl" and whole:
        first, *rest = whole.splitlines()
        row = json.loads(first)
        return [
            b"\n".join([json.dumps({**row, name: odd}).encode(), *rest])
            for name in row
            for odd in ODD
        ]
    return []
