"""Drawing of phantoms.

Images add up soft masks of signed depth like tissue on film; then noise.

Letters: S side of the image. Depths are positive inside, in fractions of the canvas.
"""

import math

import numpy as np

from eve_vl.systems.medical.phantoms import world
from eve_vl.systems.medical.phantoms.world import Finding, Phantom

SIGMA = 6.0
"""Standard deviation of the film's noise, in levels; the unit of all contrasts."""

# Levels
AIR = 10
TISSUE = 120
LUNG = 48
MIDLINE = 178
HEART = 166
BELLY = 172
FLUID = 158
BARE = 14

CELL_Y = {"upper": 0.3, "middle": 0.45, "lower": 0.6}
CELL_X = 0.6  # by the half width of the chest
_NUM_RIBS = 6
_VESSELS = ((-1.1, 0.17), (-0.55, 0.16), (0.05, 0.17), (0.6, 0.2), (1.05, 0.2))  # angle, length
_SIGNS = {"right": -1, "left": 1}  # the patient's right is on the left of the image


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
    rng = np.random.Generator(np.random.PCG64(phantom.seed))
    uniform_4SS = rng.random((4, image_size, image_size))
    return SIGMA * math.sqrt(3) * (uniform_4SS.sum(axis=0) - 2)


def draw(phantom: Phantom, image_size: int) -> np.ndarray:
    """Return the drawing without noise, float64 (S, S), in levels."""
    return _Film(phantom, image_size).draw()


class _Film:
    """A film: coordinates of the body, and the shapes drawn on them."""

    def __init__(self, phantom: Phantom, image_size: int):
        self.phantom = phantom
        self.patient = phantom.patient
        self.size = image_size
        centers_S = (np.arange(image_size) + 0.5) / image_size - 0.5
        down_S1 = centers_S[:, None]
        right_1S = centers_S[None, :]
        cos = math.cos(phantom.tilt)
        sin = math.sin(phantom.tilt)
        self.y = 0.5 + cos * down_S1 - sin * right_1S
        self.x = sin * down_S1 + cos * right_1S  # 0 at the middle of the body
        self.canvas_y = 0.5 + down_S1 + 0 * right_1S
        self.canvas_x = 0.5 + right_1S + 0 * down_S1
        self.base = self.patient.base + phantom.breath
        # distance from the middle on that side
        self.aside = {side: _SIGNS[side] * self.x for side in world.SIDES}
        self.lung = {side: self.soft(self._lung_depth(side)) for side in world.SIDES}

    def draw(self) -> np.ndarray:
        """Draw everything from the back to the front."""
        film = self._draw_body()
        for finding in self.phantom.findings:
            film = self._draw_finding(film, finding)
        film = self._draw_bones_and_heart(film)
        for device in sorted(self.patient.devices):
            film = np.maximum(film, self._device(device))
        film = 100 + (film - 100) * self.phantom.gain
        down, right = self.phantom.slope
        film += 2 * (self.canvas_y - 0.5) * down + 2 * (self.canvas_x - 0.5) * right
        return np.maximum(film, self._marker())

    def _draw_body(self) -> np.ndarray:
        """Draw the body, lungs, stomach and vessels."""
        film = np.full_like(self.y, AIR)
        film += (TISSUE - AIR) * self._body()
        film += (BELLY - TISSUE) * self.soft(self.y - self.base - 0.01) * self._body() * 0.9
        for side in world.SIDES:
            film += self.lung[side] * (LUNG - film)
        stomach_y = (self.y - self.base - 0.08) * 1.4
        stomach = self.soft(0.05 - np.hypot(stomach_y, self.aside["left"] - 0.17), 2)
        film += 13 * self._breasts() - 34 * stomach
        film += self._vessels()
        return film

    def _draw_bones_and_heart(self, film: np.ndarray) -> np.ndarray:
        """Draw what lies over the lungs: ribs, midline, heart, windpipe and spine."""
        out = np.abs(self.x - self.phantom.turn)
        film += self._bones()
        film += self.soft(self._midline_depth(), 1.5) * 0.92 * (MIDLINE - film)
        film += self.soft(self._heart_depth(), 1.5) * 0.92 * (HEART - film)
        windpipe = self.soft(np.minimum(0.016 - out, 0.24 - self.y), 1.5)
        film -= 38 * windpipe
        spine = self.soft(0.034 - out, 2) * self.soft(self.y - 0.03, 2)
        film += 9 * spine * (0.6 + 0.4 * np.cos(2 * np.pi * self.y / 0.075))
        return film

    def soft(self, depth_SS: np.ndarray, pixels: float = 1.0) -> np.ndarray:
        """Return the covered share of each pixel: a ramp some pixels wide."""
        return np.clip(depth_SS * self.size / pixels + 0.5, 0, 1)

    def line(self, y: float, x: float, to_y: float, to_x: float, radius: float) -> np.ndarray:
        """Return the share of each pixel covered by a line with round ends.

        x is measured from the body's middle.
        """
        half_y = (to_y - y) / 2
        half_x = (to_x - x) / 2
        from_y = self.y - y - half_y
        from_x = self.x - x - half_x
        along = np.clip((from_y * half_y + from_x * half_x) / (half_y**2 + half_x**2), -1, 1)
        return self.soft(radius - np.hypot(from_y - along * half_y, from_x - along * half_x))

    # Anatomy

    def _body(self) -> np.ndarray:
        shoulder = 0.06 + 0.28 * np.maximum(np.abs(self.x) - 0.1, 0) - 0.06 * (np.abs(self.x) < 0.1)
        return self.soft(np.minimum(0.47 - np.abs(self.x), self.y - shoulder), 2)

    def dome(self, side: str) -> np.ndarray:
        """Return the height of the diaphragm under each point of a side."""
        width = self.patient.half_width
        lift = 0.022 if side == "right" else 0.0
        across = np.abs((self.aside[side] - 0.42 * width) / (0.58 * width))
        return self.base - lift + 0.1 * across**2.2

    def wall_depth(self, side: str) -> np.ndarray:
        """Return the depth of each point inside the chest wall."""
        width = self.patient.half_width
        across = np.maximum(self.aside[side], 0) / width
        up = np.maximum(0.62 - self.y, 0) / (0.62 - self.patient.apex)
        return (1 - (across**2.3 + up**2.6) ** (1 / 2.4)) * width

    def _lung_depth(self, side: str) -> np.ndarray:
        inner = self.aside[side] - _SIGNS[side] * self.phantom.turn - 0.052
        return np.minimum(np.minimum(self.wall_depth(side), inner), self.dome(side) - self.y)

    def _midline_depth(self) -> np.ndarray:
        out = self.x - self.phantom.turn
        # the aortic arch, on the patient's left
        knob = 0.035 - np.hypot(self.y - 0.3, out - 0.055)
        hila = 0.032 - np.hypot((self.y - 0.43) * 0.6, np.abs(out) - 0.075)
        band = 0.058 + 0.02 * np.exp(-(((self.y - 0.1) / 0.08) ** 2)) - np.abs(out)
        return np.maximum.reduce([np.minimum(band, self.y - 0.02), knob, hila])

    def _heart_depth(self) -> np.ndarray:
        large = self.phantom.finding(world.CARDIOMEGALY)
        share = large.amount if large else self.patient.heart
        width = share * 2 * self.patient.half_width
        middle = self.phantom.turn + 0.11 * width
        down = (self.y - self.base + 0.1) / (0.12 + 0.12 * width)
        across = (self.x - middle) / (width / 2)
        # the tip points down and to the patient's left
        leaning = np.hypot(down - 0.35 * across, across)
        return np.minimum((1 - leaning) * width / 2, self.base + 0.05 - self.y)

    def _bones(self) -> np.ndarray:
        """Draw ribs, collarbones and, in the view from the front, shoulder blades."""
        total = np.zeros_like(self.y)
        chest = self.soft(0.445 - np.abs(self.x), 2)
        out = np.clip(np.abs(self.x) / self.patient.half_width, 0, 1.1)
        for rib in range(_NUM_RIBS):
            start = 0.1 + 0.095 * (rib + 0.5 * self.patient.rib_phase)
            # from the spine up and over, then down
            middle = start + 0.055 * np.sin(np.pi * 0.8 * out) + 0.09 * out**2
            total += 19 * self.soft(0.012 - np.abs(self.y - middle), 1.2) * chest
        high = 0.03 if self.phantom.view == "ap" else 0.0
        for sign in (-1, 1):
            total += 34 * self.line(0.175 - high, 0.05 * sign, 0.12 - high, 0.4 * sign, 0.014)
            if self.phantom.view == "ap":
                total += 30 * self._shoulder_blade(sign)
        return total

    def _shoulder_blade(self, sign: int) -> np.ndarray:
        """Draw a shoulder blade over the lung."""
        out = sign * self.x
        width = np.minimum(out - 0.255 - 0.1 * (self.y - 0.2), 0.45 - out)
        height = np.minimum(self.y - 0.15, 0.47 - self.y)
        return self.soft(np.minimum(width, height), 1.5)

    def _breasts(self) -> np.ndarray:
        total = np.zeros_like(self.y)
        if self.patient.sex == "Male":
            return total
        for out in self.aside.values():
            total += self.soft(0.135 - np.hypot((self.y - 0.6) * 1.05, out - 0.24), 3)
        return total

    def _vessels(self) -> np.ndarray:
        total = np.zeros_like(self.y)
        for side, lung in self.lung.items():
            sign = _SIGNS[side]
            for angle, length in _VESSELS:
                to_y = 0.43 + length * math.sin(angle)
                to_x = sign * (0.085 + length * math.cos(angle))
                vessel = self.line(0.43, 0.085 * sign, to_y, to_x, 0.008)
                total = np.maximum(total, 15 * lung * vessel)
        return total

    # Findings

    def _draw_finding(self, film: np.ndarray, finding: Finding) -> np.ndarray:
        """Return the film with a finding."""
        match finding.kind:
            case "cardiomegaly":
                return film  # drawn with the heart
            case "pleural effusion":
                return self._draw_effusion(film, finding)
            case "pneumothorax":
                return self._draw_pneumothorax(film, finding)
            case "consolidation":
                return self._draw_consolidation(film, finding)
            case "nodule":
                return self._draw_nodule(film, finding)
            case "atelectasis":
                return self._draw_atelectasis(film, finding)
            case "edema":
                return self._draw_edema(film, finding)
        raise AssertionError(finding.kind)

    def place(self, finding: Finding) -> tuple[float, float]:
        """Return the centre of a finding in a zone (y, x from the body's middle)."""
        out = CELL_X * self.patient.half_width + finding.shift[1]
        return CELL_Y[finding.zone] + finding.shift[0], _SIGNS[finding.side] * out

    def _draw_effusion(self, film: np.ndarray, finding: Finding) -> np.ndarray:
        """Draw fluid with a meniscus that rises along the wall."""
        side = finding.side
        floor = self.base + 0.05
        level = floor - finding.amount * (floor - self.patient.apex) - 0.05
        out = np.clip(self.aside[side] / self.patient.half_width, 0, 1)
        below_meniscus = self.y - level + 0.09 * out**3 - 0.02
        fluid = self.soft(np.minimum(below_meniscus, self.wall_depth(side)), 1.5)
        return film + fluid * self.soft(self.aside[side] - 0.03) * np.maximum(FLUID - film, 0)

    def _draw_pneumothorax(self, film: np.ndarray, finding: Finding) -> np.ndarray:
        """Draw a rim without vessels, darker than the lung, with a fine line as its edge."""
        depth = self.wall_depth(finding.side) - finding.amount
        upper = self.lung[finding.side] * self.soft(0.46 - self.y, 3)
        film = film + upper * self.soft(-depth) * (BARE - film)
        return film + 46 * upper * self.soft(0.009 - np.abs(depth))

    def _draw_consolidation(self, film: np.ndarray, finding: Finding) -> np.ndarray:
        """Draw a fluffy patch."""
        y, x = self.place(finding)
        down = self.y - y
        across = self.x - x
        ragged = 0.16 * np.sin(5 * np.arctan2(down, across) + 40 * finding.amount)
        distance = np.hypot(down, across) / finding.amount * (1 + ragged)
        return film + 66 / (1 + np.exp(7 * (distance - 0.9)))

    def _draw_nodule(self, film: np.ndarray, finding: Finding) -> np.ndarray:
        """Draw a round spot with a sharp edge."""
        y, x = self.place(finding)
        return film + 72 * self.soft(finding.amount - np.hypot(self.y - y, self.x - x))

    def _draw_atelectasis(self, film: np.ndarray, finding: Finding) -> np.ndarray:
        """Draw a thin band above the diaphragm."""
        sign = _SIGNS[finding.side]
        shift_y, shift_x = finding.shift
        y = self.base - 0.1 + shift_y
        x = sign * (CELL_X * self.patient.half_width + 0.02 + shift_x / 2)
        down = 0.3 * finding.amount
        out = sign * finding.amount
        return film + 66 * self.line(y + down, x - out, y - down, x + out, 0.012)

    def _draw_edema(self, film: np.ndarray, finding: Finding) -> np.ndarray:
        """Draw haze around both hila, shaped like the wings of a bat."""
        spread = np.hypot((self.y - 0.44) / 0.16, (np.abs(self.x) - 0.13) / 0.13)
        lungs = self.lung["right"] + self.lung["left"]
        return film + finding.amount * 1.25 * np.exp(-(spread**2.5)) * lungs

    # What is drawn over everything else, in levels

    def _device(self, device: str) -> np.ndarray:
        match device:
            case "pacemaker":
                return self._pacemaker()
            case "wires":
                return self._wires()
            case "tube":
                return self._tube()
        raise AssertionError(device)

    def _pacemaker(self) -> np.ndarray:
        """Draw a box below the collarbone, with a lead to the heart."""
        box = 0.042 - np.maximum(np.abs(self.y - 0.2), np.abs(self.x - 0.33) * 0.85)
        upper_lead = self.line(0.21, 0.3, 0.22, 0.05, 0.005)
        lower_lead = self.line(0.22, 0.05, 0.58, 0.03, 0.005)
        return np.maximum(250 * self.soft(box), 225 * np.maximum(upper_lead, lower_lead))

    def _wires(self) -> np.ndarray:
        """Draw the stitches of the breastbone."""
        rings = []
        for y in (0.3, 0.39, 0.48, 0.57):
            radius = np.hypot(self.y - y, self.x - self.phantom.turn)
            rings.append(np.abs(radius - 0.017))
        return 240 * self.soft(0.006 - np.minimum.reduce(rings))

    def _tube(self) -> np.ndarray:
        """Draw a drain that enters between the ribs and leads up."""
        sign = _SIGNS[self.patient.tube_side]
        width = self.patient.half_width
        entry = self.line(0.52, sign * (width + 0.03), 0.42, sign * 0.8 * width, 0.008)
        upper = self.line(0.42, sign * 0.8 * width, 0.24, sign * 0.62 * width, 0.008)
        return 215 * np.maximum(entry, upper)

    def _marker(self) -> np.ndarray:
        """Draw the letter R next to the patient's right shoulder."""
        if not self.phantom.has_marker:
            return np.zeros_like(self.y)
        y = self.canvas_y - 0.09
        x = self.canvas_x - 0.09
        stem = np.minimum(0.011 - np.abs(x + 0.026), 0.048 - np.abs(y))
        bow = np.minimum(0.01 - np.abs(np.hypot(y + 0.022, x + 0.006) - 0.02), x + 0.03)
        leg = np.minimum(0.011 - np.abs(x - 0.4 * y + 0.004), np.minimum(y, 0.048 - y))
        return 245 * self.soft(np.maximum.reduce([stem, bow, leg]))
