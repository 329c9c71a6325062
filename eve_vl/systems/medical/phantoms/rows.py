"""Phantoms: schematic chest radiographs.

Their reports, labels and questions are true by construction.

Pure functions of (split, seed, index), no files. They prove code and protocols, and say nothing about medicine. In
`test_shift` a shortcut of the training data is broken. `test_novel` combines findings with sides, zones and grades in
wordings that training never showed. Images add up soft masks of signed depth like tissue on film; then noise.

Letters: S side of the image. Depths are positive inside, in fractions of the canvas.
"""

import math
from functools import partial
from typing import ClassVar

import numpy as np

from eve_vl.data.image_refs import ImageDrawing
from eve_vl.data.kinds.captions import ImageText
from eve_vl.data.kinds.images import ImageOnly
from eve_vl.data.kinds.labels import LabeledExample
from eve_vl.data.kinds.questions import ImageQuestion
from eve_vl.data.kinds.texts import TextOnly
from eve_vl.synthetic.generated_rows import GeneratedRows
from eve_vl.systems.medical.phantoms import world
from eve_vl.systems.medical.phantoms.questions import ANSWERS, sample_question
from eve_vl.systems.medical.phantoms.reports import (
    ABSENT,
    NORMAL,
    Report,
    distractors,
    sample_report,
)
from eve_vl.systems.medical.phantoms.world import Finding, Phantom, sample_phantom

SIGMA = 6.0
"""Standard deviation of the film's noise, in levels; the unit of all contrasts."""

AIR, TISSUE, LUNG, MIDLINE, HEART, BELLY = 10, 120, 48, 178, 166, 172  # levels
FLUID, BARE = 158, 14
CELL_Y = {"upper": 0.3, "middle": 0.45, "lower": 0.6}
CELL_X = 0.6  # by the half width of the chest
_NUM_RIBS = 6
_SIGNS = {"right": -1, "left": 1}  # the patient's right is on the left of the image


class PhantomRows(GeneratedRows):
    """Base class of the sources."""

    NAME: ClassVar = "phantoms"
    NUM_ROWS: ClassVar = {
        "train": 100_000,
        "val": 1_000,
        "test": 1_000,
        "test_shift": 1_000,
        "test_novel": 1_000,
    }
    image_size: int = 64

    def phantom(self, index: int) -> Phantom:
        """Return the phantom of row `index`."""
        return sample_phantom(self.split, self.seed, index)

    def report(self, index: int) -> Report:
        """Return the report of row `index`."""
        return sample_report(self.split, self.phantom(index))

    def image(self, phantom: Phantom) -> ImageDrawing:
        """Return the image of a phantom, which must not be mirrored."""
        return ImageDrawing(draw=partial(render, phantom, self.image_size), has_sides=True)


class PhantomPairs(PhantomRows):
    """Phantoms with a report each; `absent` are the findings that it denies."""

    def __getitem__(self, index: int, /) -> ImageText:
        phantom, report = self.phantom(index), self.report(index)
        denied = tuple(
            mention.finding.kind for mention in report.mentions if mention.state == ABSENT
        )
        texts = {"captions": (report.text,), "labels": labels_of(phantom), "absent": denied}
        return ImageText(image=self.image(phantom), where=self.where(index), **texts)

    def distractors(self, index: int) -> list[str]:
        """Return three false reports of a row's phantom.

        Each has one change to the true one.
        """
        return distractors(self.split, self.phantom(index))


class PhantomImages(PhantomRows):
    """Phantoms without reports."""

    def __getitem__(self, index: int, /) -> ImageOnly:
        return ImageOnly(where=self.where(index), image=self.image(self.phantom(index)))


class PhantomTexts(PhantomRows):
    """Reports without images."""

    def __getitem__(self, index: int, /) -> TextOnly:
        return TextOnly(where=self.where(index), text=self.report(index).text)


class PhantomLabels(PhantomRows):
    """Phantoms and their reports, labeled with the findings or NORMAL.

    Findings are in the order of FINDINGS.
    """

    def __getitem__(self, index: int, /) -> LabeledExample:
        where, phantom = self.where(index), self.phantom(index)
        return LabeledExample(
            image=self.image(phantom),
            text=self.report(index).text,
            labels=labels_of(phantom),
            where=where,
        )


class PhantomQuestions(PhantomRows):
    """Phantoms with a question and its answer (one of ANSWERS) each.

    Rows 2k and 2k + 1 are a minimal pair.

    answer_type is CLOSED or OPEN, content_type one of CONTENT_TYPES.
    """

    @property
    def answers(self) -> tuple[str, ...]:
        """Every answer."""
        return ANSWERS

    def __getitem__(self, index: int, /) -> ImageQuestion:
        phantom, question, answer, answer_type, content_type = sample_question(
            self.split, self.seed, index
        )
        number = int(index)  # subsets give numpy integers, which JSON cannot write
        types = {
            "answer_type": answer_type,
            "content_type": content_type,
            "group": f"{self.split} {index // 2}",
        }
        shown, where = self.image(phantom), self.where(index)
        return ImageQuestion(
            image=shown,
            question=question,
            answers=(answer,),
            question_id=number,
            where=where,
            **types,
        )


def labels_of(phantom: Phantom) -> tuple[str, ...]:
    """Return the findings of a phantom, or NORMAL."""
    return tuple(finding.kind for finding in phantom.findings) or (NORMAL,)


def render(phantom: Phantom, image_size: int) -> np.ndarray:
    """Render a phantom: uint8, shape (image_size, image_size, 3), grey.

    Below 64 pixels, small findings change fewer than twelve pixels, the required minimum.
    """
    return to_pixels(draw(phantom, image_size) + noise(phantom, image_size))


def to_pixels(drawing_SS: np.ndarray) -> np.ndarray:
    """Return levels as an image: uint8, three equal channels."""
    grey_SS = np.clip(drawing_SS + 0.5, 0, 255).astype(np.uint8)
    return np.repeat(grey_SS[:, :, None], 3, axis=2)


def noise(phantom: Phantom, image_size: int) -> np.ndarray:
    """Return the film's noise (S, S) in levels.

    It is almost normal, from a generator with a sequence that NumPy guarantees.
    """
    uniform_4SS = np.random.Generator(np.random.PCG64(phantom.seed)).random(
        (4, image_size, image_size)
    )
    return SIGMA * math.sqrt(3) * (uniform_4SS.sum(axis=0) - 2)


def draw(phantom: Phantom, image_size: int) -> np.ndarray:
    """Return the drawing without noise, float64 (S, S), in levels."""
    return _Film(phantom, image_size).levels()


class _Film:
    """A film: coordinates of the body, and the shapes drawn on them."""

    def __init__(self, phantom: Phantom, image_size: int):
        self.phantom, self.patient, self.size = phantom, phantom.patient, image_size
        centers_S = (np.arange(image_size) + 0.5) / image_size - 0.5
        down_S1, right_1S = centers_S[:, None], centers_S[None, :]
        cos, sin = math.cos(phantom.tilt), math.sin(phantom.tilt)
        self.y = 0.5 + cos * down_S1 - sin * right_1S
        self.x = sin * down_S1 + cos * right_1S  # 0 at the middle of the body
        self.canvas_y, self.canvas_x = 0.5 + down_S1 + 0 * right_1S, 0.5 + right_1S + 0 * down_S1
        self.base = self.patient.base + phantom.breath
        self.aside = {
            side: _SIGNS[side] * self.x for side in world.SIDES
        }  # distance from the middle on that side
        self.lung = {side: self.soft(self._lung_depth(side)) for side in world.SIDES}

    def levels(self) -> np.ndarray:
        """Draw everything from the back to the front."""
        film = np.full_like(self.y, AIR)
        film += (TISSUE - AIR) * self._body()
        film += (BELLY - TISSUE) * self.soft(self.y - self.base - 0.01) * self._body() * 0.9
        for side in world.SIDES:
            film += self.lung[side] * (LUNG - film)
        stomach = self.soft(
            0.05 - np.hypot((self.y - self.base - 0.08) * 1.4, self.aside["left"] - 0.17), 2
        )
        film += 13 * self._breasts() - 34 * stomach
        film += self._vessels()
        for finding in self.phantom.findings:
            if (
                finding.kind != world.CARDIOMEGALY
            ):  # the methods below, by the last word of the kind
                film = getattr(self, finding.kind.split()[-1])(film, finding)
        film += self._bones()
        film += self.soft(self._midline_depth(), 1.5) * 0.92 * (MIDLINE - film)
        film += self.soft(self._heart_depth(), 1.5) * 0.92 * (HEART - film)
        film -= 38 * self.soft(
            np.minimum(0.016 - np.abs(self.x - self.phantom.turn), 0.24 - self.y), 1.5
        )  # the windpipe
        spine = self.soft(0.034 - np.abs(self.x - self.phantom.turn), 2) * self.soft(
            self.y - 0.03, 2
        )
        film += 9 * spine * (0.6 + 0.4 * np.cos(2 * np.pi * self.y / 0.075))
        for device in sorted(self.patient.devices):
            film = np.maximum(film, getattr(self, device)())
        film = 100 + (film - 100) * self.phantom.gain
        film += (
            2 * (self.canvas_y - 0.5) * self.phantom.slope[0]
            + 2 * (self.canvas_x - 0.5) * self.phantom.slope[1]
        )
        return np.maximum(film, self._marker())

    def soft(self, depth_SS: np.ndarray, pixels: float = 1.0) -> np.ndarray:
        """Return the covered share of each pixel: a ramp some pixels wide."""
        return np.clip(depth_SS * self.size / pixels + 0.5, 0, 1)

    def line(self, y: float, x: float, to_y: float, to_x: float, radius: float) -> np.ndarray:
        """Return the share of each pixel covered by a line with round ends.

        x is measured from the body's middle.
        """
        half_y, half_x = (to_y - y) / 2, (to_x - x) / 2
        from_y, from_x = self.y - y - half_y, self.x - x - half_x
        along = np.clip((from_y * half_y + from_x * half_x) / (half_y**2 + half_x**2), -1, 1)
        return self.soft(radius - np.hypot(from_y - along * half_y, from_x - along * half_x))

    def _body(self) -> np.ndarray:
        shoulder = 0.06 + 0.28 * np.maximum(np.abs(self.x) - 0.1, 0) - 0.06 * (np.abs(self.x) < 0.1)
        return self.soft(np.minimum(0.47 - np.abs(self.x), self.y - shoulder), 2)

    def dome(self, side: str) -> np.ndarray:
        """Return the height of the diaphragm under each point of a side."""
        width, lift = self.patient.half_width, 0.022 if side == "right" else 0.0
        return (
            self.base
            - lift
            + 0.1 * np.abs((self.aside[side] - 0.42 * width) / (0.58 * width)) ** 2.2
        )

    def wall_depth(self, side: str) -> np.ndarray:
        """Return the depth of each point inside the chest wall."""
        width, apex = self.patient.half_width, self.patient.apex
        across = np.maximum(self.aside[side], 0) / width
        up = np.maximum(0.62 - self.y, 0) / (0.62 - apex)
        return (1 - (across**2.3 + up**2.6) ** (1 / 2.4)) * width

    def _lung_depth(self, side: str) -> np.ndarray:
        inner = self.aside[side] - _SIGNS[side] * self.phantom.turn - 0.052
        return np.minimum(np.minimum(self.wall_depth(side), inner), self.dome(side) - self.y)

    def _midline_depth(self) -> np.ndarray:
        out = self.x - self.phantom.turn
        knob = 0.035 - np.hypot(self.y - 0.3, out - 0.055)  # the aortic arch, on the patient's left
        hila = [0.032 - np.hypot((self.y - 0.43) * 0.6, np.abs(out) - 0.075)]
        band = 0.058 + 0.02 * np.exp(-(((self.y - 0.1) / 0.08) ** 2)) - np.abs(out)
        return np.maximum.reduce([np.minimum(band, self.y - 0.02), knob, *hila])

    def _heart_depth(self) -> np.ndarray:
        large = self.phantom.finding(world.CARDIOMEGALY)
        width = (large.amount if large else self.patient.heart) * 2 * self.patient.half_width
        middle = self.phantom.turn + 0.11 * width
        down, across = (
            (self.y - self.base + 0.1) / (0.12 + 0.12 * width),
            (self.x - middle) / (width / 2),
        )
        leaning = np.hypot(
            down - 0.35 * across, across
        )  # the tip points down and to the patient's left
        return np.minimum((1 - leaning) * width / 2, self.base + 0.05 - self.y)

    def _bones(self) -> np.ndarray:
        total = np.zeros_like(self.y)
        width, chest = self.patient.half_width, self.soft(0.445 - np.abs(self.x), 2)
        for rib in range(_NUM_RIBS):
            start = 0.1 + 0.095 * (rib + 0.5 * self.patient.rib_phase)
            out = np.clip(np.abs(self.x) / width, 0, 1.1)
            middle = (
                start + 0.055 * np.sin(np.pi * 0.8 * out) + 0.09 * out**2
            )  # from the spine up and over, then down
            total += 19 * self.soft(0.012 - np.abs(self.y - middle), 1.2) * chest
        high = 0.03 if self.phantom.view == "ap" else 0.0
        for sign in (-1, 1):
            total += 34 * self.line(0.175 - high, 0.05 * sign, 0.12 - high, 0.4 * sign, 0.014)
            if self.phantom.view == "ap":  # shoulder blades lie over the lungs
                out = sign * self.x
                blade = np.minimum(
                    np.minimum(out - 0.255 - 0.1 * (self.y - 0.2), 0.45 - out),
                    np.minimum(self.y - 0.15, 0.47 - self.y),
                )
                total += 30 * self.soft(blade, 1.5)
        return total

    def _breasts(self) -> np.ndarray:
        if self.patient.sex == "Male":
            return np.zeros_like(self.y)
        return sum(
            self.soft(0.135 - np.hypot((self.y - 0.6) * 1.05, out - 0.24), 3)
            for out in self.aside.values()
        )  # pyright: ignore

    def _vessels(self) -> np.ndarray:
        total = np.zeros_like(self.y)
        for side, lung in self.lung.items():
            sign = _SIGNS[side]
            for angle, length in (
                (-1.1, 0.17),
                (-0.55, 0.16),
                (0.05, 0.17),
                (0.6, 0.2),
                (1.05, 0.2),
            ):
                to_y, to_x = (
                    0.43 + length * math.sin(angle),
                    sign * (0.085 + length * math.cos(angle)),
                )
                total = np.maximum(
                    total, 15 * lung * self.line(0.43, 0.085 * sign, to_y, to_x, 0.008)
                )
        return total

    # Findings: each returns the film with it.

    def place(self, finding: Finding) -> tuple[float, float]:
        """Return the centre of a finding in a zone (y, x from the body's middle)."""
        out = CELL_X * self.patient.half_width + finding.shift[1]
        return CELL_Y[finding.zone] + finding.shift[0], _SIGNS[finding.side] * out

    def effusion(self, film: np.ndarray, finding: Finding) -> np.ndarray:
        """Draw fluid with a meniscus that rises along the wall."""
        side, floor = finding.side, self.base + 0.05
        level = floor - finding.amount * (floor - self.patient.apex) - 0.05
        out = np.clip(self.aside[side] / self.patient.half_width, 0, 1)
        fluid = self.soft(
            np.minimum(self.y - level + 0.09 * out**3 - 0.02, self.wall_depth(side)), 1.5
        )
        return film + fluid * self.soft(self.aside[side] - 0.03) * np.maximum(FLUID - film, 0)

    def pneumothorax(self, film: np.ndarray, finding: Finding) -> np.ndarray:
        """Draw a rim without vessels, darker than the lung, with a fine line as its edge."""
        side, depth = finding.side, self.wall_depth(finding.side) - finding.amount
        upper = self.lung[side] * self.soft(0.46 - self.y, 3)
        film = film + upper * self.soft(-depth) * (BARE - film)
        return film + 46 * upper * self.soft(0.009 - np.abs(depth))

    def consolidation(self, film: np.ndarray, finding: Finding) -> np.ndarray:
        """Draw a fluffy patch."""
        y, x = self.place(finding)
        down, across = self.y - y, self.x - x
        ragged = 0.16 * np.sin(5 * np.arctan2(down, across) + 40 * finding.amount)
        distance = np.hypot(down, across) / finding.amount * (1 + ragged)
        return film + 66 / (1 + np.exp(7 * (distance - 0.9)))

    def nodule(self, film: np.ndarray, finding: Finding) -> np.ndarray:
        """Draw a round spot with a sharp edge."""
        y, x = self.place(finding)
        return film + 72 * self.soft(finding.amount - np.hypot(self.y - y, self.x - x))

    def atelectasis(self, film: np.ndarray, finding: Finding) -> np.ndarray:
        """Draw a thin band above the diaphragm."""
        sign, shift = _SIGNS[finding.side], finding.shift
        y, x = (
            self.base - 0.1 + shift[0],
            sign * (CELL_X * self.patient.half_width + 0.02 + shift[1] / 2),
        )
        down, out = 0.3 * finding.amount, sign * finding.amount
        return film + 66 * self.line(y + down, x - out, y - down, x + out, 0.012)

    def edema(self, film: np.ndarray, finding: Finding) -> np.ndarray:
        """Draw haze around both hila, shaped like the wings of a bat."""
        spread = np.hypot((self.y - 0.44) / 0.16, (np.abs(self.x) - 0.13) / 0.13)
        return film + finding.amount * 1.25 * np.exp(-(spread**2.5)) * (
            self.lung["right"] + self.lung["left"]
        )

    # Devices: each returns levels drawn over everything else.

    def pacemaker(self) -> np.ndarray:
        """Draw a box below the collarbone, with a lead to the heart."""
        box = 0.042 - np.maximum(np.abs(self.y - 0.2), np.abs(self.x - 0.33) * 0.85)
        lead = np.maximum(
            self.line(0.21, 0.3, 0.22, 0.05, 0.005), self.line(0.22, 0.05, 0.58, 0.03, 0.005)
        )
        return np.maximum(250 * self.soft(box), 225 * lead)

    def wires(self) -> np.ndarray:
        """Draw the stitches of the breastbone."""
        rings = [
            np.abs(np.hypot(self.y - y, self.x - self.phantom.turn) - 0.017)
            for y in (0.3, 0.39, 0.48, 0.57)
        ]
        return 240 * self.soft(0.006 - np.minimum.reduce(rings))

    def tube(self) -> np.ndarray:
        """Draw a drain that enters between the ribs and leads up."""
        sign, width = _SIGNS[self.patient.tube_side], self.patient.half_width
        inside = self.line(0.52, sign * (width + 0.03), 0.42, sign * 0.8 * width, 0.008)
        return 215 * np.maximum(
            inside, self.line(0.42, sign * 0.8 * width, 0.24, sign * 0.62 * width, 0.008)
        )

    def _marker(self) -> np.ndarray:
        """Draw the letter R next to the patient's right shoulder."""
        if not self.phantom.has_marker:
            return np.zeros_like(self.y)
        y, x = self.canvas_y - 0.09, self.canvas_x - 0.09
        stem = np.minimum(0.011 - np.abs(x + 0.026), 0.048 - np.abs(y))
        bow = np.minimum(0.01 - np.abs(np.hypot(y + 0.022, x + 0.006) - 0.02), x + 0.03)
        leg = np.minimum(0.011 - np.abs(x - 0.4 * y + 0.004), np.minimum(y, 0.048 - y))
        return 245 * self.soft(np.maximum.reduce([stem, bow, leg]))
