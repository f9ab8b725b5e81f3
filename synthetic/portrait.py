"""One person's face, from the hair behind it to whatever hides it, part by part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from synthetic.geometry import (
    CIRCLE,
    HUMP,
    SPAN,
    Canvas,
    Color,
    Point,
    band,
    closed,
    ellipse,
    symmetric,
    wavy,
)
from synthetic.people import Identity, Shot

SKIN = [(236, 194, 170), (226, 174, 140), (206, 150, 112), (150, 100, 70), (92, 60, 46)]
HAIR = [(26, 22, 26), (62, 38, 28), (112, 70, 40), (164, 68, 30), (214, 172, 104), (176, 176, 180)]
IRIS = [(58, 34, 20), (112, 74, 36), (96, 116, 58), (66, 128, 168), (124, 142, 156)]
LIPS = [(222, 140, 128), (196, 88, 90), (148, 44, 62), (150, 92, 78)]
FRAME = [(24, 24, 28), (96, 52, 30), (40, 62, 120), (150, 30, 40), (184, 150, 84)]

BLUSH, EYEBALL, LASHES, TEETH = (214, 84, 84), (244, 242, 240), (40, 26, 24), (240, 236, 226)
MOUTH_INSIDE, BROW_BROWN, WHITE = (84, 30, 34), (44, 28, 22), (255, 255, 255)

# The same spots for everyone, stretched by the face: only how strong they are is a trait.
FRECKLES = np.random.default_rng(8).normal((0, 0.2), (0.4, 0.09), (22, 2)).clip(-0.8, 0.8)


def paint(canvas: Canvas, who: Identity, shot: Shot, *, rng: np.random.Generator) -> None:
    """Draw the person on the canvas; the generator gives clothes and occluder."""
    skin = _palette(SKIN, who.skin_tone)
    skin = _mix(skin, (skin[0], skin[1] + 2, skin[2] - 16), who.skin_warmth)
    hair = _palette(HAIR, who.hair_tone)
    _hair_behind(canvas, who, hair)
    _body(canvas, who, skin, cloth=_any_color(rng))
    _head(canvas, who, skin, hair)
    _nose(canvas, who, shot, skin)
    _mouth(canvas, who, shot, skin, hair)
    for side in (-1, 1):
        _eye(canvas, who, shot, skin, side=side)
        _brow(canvas, who, shot, hair, side=side)
    _hair_front(canvas, who, hair)
    if who.glasses > 0:
        _glasses(canvas, who)
    _occluder(canvas, who, shot, rng=rng)


def _palette(colors: Sequence[Color], tone: float) -> Color:
    position = tone * (len(colors) - 1)
    low = min(int(position), len(colors) - 2)
    return _mix(colors[low], colors[low + 1], position - low)


def _mix(a: Color, b: Color, share: float) -> Color:
    return tuple(round(p + (q - p) * share) for p, q in zip(a, b))


def _shade(color: Color, factor: float) -> Color:
    return tuple(min(255, round(c * factor)) for c in color)


def _any_color(rng: np.random.Generator) -> Color:
    return tuple(rng.integers(20, 236, 3).tolist())


def _temple(who: Identity) -> float:
    """Half the width of the hair beside the ears: short hair leaves them free."""
    return who.face_width + (who.hair_sides if who.hair_length > 0 else 0.3 * who.hair_sides)


def _hair_behind(canvas: Canvas, who: Identity, hair: Color) -> None:
    wide, top, end = _temple(who), 1 + who.hair_volume, max(who.hair_length, -0.1)
    half = [(0, -top), (0.62 * wide, -0.9 * top), (wide, -0.3), (1.04 * wide, 0.5 * end)]
    half += [(0.95 * wide, end), (0.4 * wide, end + 0.06), (0, end)]
    canvas.polygon(wavy(symmetric(half), who.curl), _shade(hair, 0.62), z=-0.15)


def _body(canvas: Canvas, who: Identity, skin: Color, *, cloth: Color) -> None:
    neck, shaded = 0.56 * who.face_width * (0.8 + 0.3 * who.jaw), _shade(skin, 0.86)
    shoulders = [(0, 1.28), (neck + 0.1, 1.25), (1.15, 1.5), (1.6, 2.0), (1.6, 3.0)]
    canvas.polygon(symmetric(shoulders), cloth, z=-0.2)
    column = np.array([(-neck, 0.4), (neck, 0.4), (neck + 0.06, 1.4), (-neck - 0.06, 1.4)])
    canvas.polygon(column, shaded, z=-0.1)
    canvas.polygon(ellipse(0, 1.38, neck + 0.06, 0.16), shaded, z=-0.1)
    canvas.polygon(ellipse(0, 0.94, neck, 0.28), _shade(skin, 0.62), z=0.0, alpha=150)


def _head(canvas: Canvas, who: Identity, skin: Color, hair: Color) -> None:
    wide, jaw, ear = who.face_width, who.face_width * who.jaw, who.ear_size
    for x in (-wide - 0.02, wide + 0.02):
        canvas.polygon(ellipse(x, 0.06, 0.6 * ear, 1.1 * ear), _shade(skin, 0.9), z=0.0)
        canvas.polygon(ellipse(x, 0.07, 0.33 * ear, 0.7 * ear), _shade(skin, 0.72), z=0.0)
    half = [(0, -1.0), (0.62 * wide * who.forehead, -0.9), (wide * who.forehead, -0.48)]
    chin = [(wide, 0.02), (jaw, 0.56), (who.chin_width, 0.93 * who.chin_drop), (0, who.chin_drop)]
    canvas.polygon(symmetric([*half, *chin]), skin, z=0.2)
    for x in (-0.62 * wide, 0.62 * wide):
        canvas.polygon(ellipse(x, 0.3, 0.2, 0.14), BLUSH, alpha=round(60 * who.blush))
    if who.beard > 0:
        _beard(canvas, who, hair, chin=chin)
    if who.freckles > 0:
        strength = round(80 + 110 * who.freckles)
        for x, y in FRECKLES:
            spot = ellipse(x * wide, y, 0.018, 0.018)[::5]
            canvas.polygon(spot, _shade(skin, 0.62), alpha=strength)


def _beard(canvas: Canvas, who: Identity, hair: Color, *, chin: list[Point]) -> None:
    lips = [(0, 0.62), (0.5 * who.mouth_width, 0.52), (0.78 * who.face_width, 0.28)]
    right = [*lips, *((1.03 * x, 1.03 * y) for x, y in chin)]
    left = [(-x, y) for x, y in right[-2:0:-1]]
    strength = round(120 + 130 * who.beard)
    canvas.polygon(closed([*right, *left]), _shade(hair, 0.85), z=0.22, alpha=strength)


def _nose(canvas: Canvas, who: Identity, shot: Shot, skin: Color) -> None:
    tip, half, bridge = who.eye_y + who.nose_length, who.nose_width, who.nose_bridge
    dark, deep, lit = _shade(skin, 0.68), _shade(skin, 0.36), _shade(skin, 1.14)
    shaded = -1 if shot.light_x > 0 else 1
    flank = [(shaded * bridge, who.eye_y - 0.1), (shaded * bridge * 1.2, tip - 0.14)]
    flank += [(shaded * half, tip), (shaded * 0.2 * half, tip + 0.02), (0.0, who.eye_y)]
    canvas.polygon(np.array(flank), dark, z=0.72, alpha=130)
    canvas.polygon(ellipse(0, tip + 0.01, half, 0.085), dark, z=0.76, alpha=190)
    canvas.polygon(ellipse(0, tip - 0.035, 0.82 * half, 0.085), skin, z=0.84)
    for x in (-0.52 * half, 0.52 * half):
        canvas.polygon(ellipse(x, tip + 0.046, 0.24 * half, 0.027), deep, z=0.78)
    ridge = ellipse(-shaded * 0.25 * bridge, tip - 0.2, 0.45 * bridge, 0.2)
    canvas.polygon(ridge, lit, z=0.84, alpha=110)


def _mouth(canvas: Canvas, who: Identity, shot: Shot, skin: Color, hair: Color) -> None:
    x = SPAN * who.mouth_width * (1 + 0.18 * shot.smile)
    middle = who.eye_y + who.nose_length + who.mouth_gap
    line = middle + 0.09 * shot.smile * (HUMP - 0.5)
    gap = max(shot.mouth_open, 0.0) * HUMP
    upper, lower = line - 0.3 * gap, line + gap
    bow = 1 - 0.3 * np.exp(-((SPAN / 0.16) ** 2))
    top, bottom = upper - who.lip_upper * bow * HUMP**0.7, lower + who.lip_lower * HUMP**0.6
    lips = _mix(_palette(LIPS, who.lip_tone), skin, 0.25)
    if who.mustache > 0:
        thick = 0.06 + 0.06 * who.mustache
        canvas.polygon(
            band(1.15 * x, top - thick * HUMP**0.5, top + 0.04), _shade(hair, 0.8), z=0.66
        )
    canvas.polygon(band(x, bottom - 0.02, bottom + 0.05 * HUMP), _shade(skin, 0.7), alpha=120)
    canvas.polygon(band(x, top, upper), _shade(lips, 0.82))
    canvas.polygon(band(x, lower, bottom), lips)
    shine = ellipse(0, lower[6] + 0.45 * who.lip_lower, 0.3 * who.mouth_width, 0.014)
    canvas.polygon(shine, WHITE, alpha=80)
    canvas.polygon(band(1.06 * x, upper - 0.008, lower + 0.012), MOUTH_INSIDE)
    if shot.mouth_open > 0.04:
        canvas.polygon(band(0.8 * x, upper, upper + 0.4 * gap), TEETH)


def _eye(canvas: Canvas, who: Identity, shot: Shot, skin: Color, *, side: int) -> None:
    wide = who.eye_width
    high = wide * who.eye_height * shot.eyes_open

    def place(xy: np.ndarray) -> np.ndarray:
        """From the eye's own frame, x outward, to the face's."""
        tilted = xy[:, 1] - who.eye_tilt * xy[:, 0]
        return np.stack([side * (who.eye_spacing + xy[:, 0]), who.eye_y + tilted], axis=1)

    def disk(radius: float, *, dx: float = 0.0, dy: float = 0.0) -> np.ndarray:
        """A circle on the eyeball, cut off by the lids."""
        xy = ellipse(side * shot.gaze * wide + dx, dy - 0.15 * high, radius, radius)
        opening = np.maximum(1 - (xy[:, 0] / wide) ** 2, 0)
        xy[:, 1] = np.clip(xy[:, 1], -high * opening**0.8, 0.6 * high * opening)
        return place(xy)

    x, lid, low = SPAN * wide, -high * HUMP**0.8, 0.6 * high * HUMP
    socket = place(band(1.25 * x, 1.6 * lid - 0.03, 1.5 * low))
    canvas.polygon(socket, _shade(skin, 0.8), alpha=110)
    canvas.polygon(place(band(x, lid, low)), EYEBALL)
    iris = _palette(IRIS, who.eye_tone)
    canvas.polygon(disk(0.088), _shade(iris, 0.6))
    canvas.polygon(disk(0.07), iris)
    canvas.polygon(disk(0.036), (12, 10, 12))
    canvas.polygon(disk(0.02, dx=0.03 * side, dy=-0.03), WHITE)
    lashes = place(band(1.08 * x, lid - 0.035 * HUMP - 0.006, lid + 0.012))
    canvas.polygon(lashes, LASHES)
    crease = lid - 0.05 - 0.03 * HUMP
    canvas.polygon(place(band(1.1 * x, crease - 0.014, crease)), _shade(skin, 0.6), alpha=170)


def _brow(canvas: Canvas, who: Identity, shot: Shot, hair: Color, *, side: int) -> None:
    x = side * (who.eye_spacing + 0.02 + SPAN * who.brow_length)
    outer = np.maximum(SPAN, 0)
    middle = who.eye_y - who.brow_gap - shot.brow_raise - who.brow_arch * HUMP
    middle = middle - who.brow_tilt * SPAN * who.brow_length + 0.03 * outer
    half = 0.5 * who.brow_thickness * (1 - 0.75 * outer) * (0.35 + 0.65 * HUMP**0.3)
    canvas.polygon(band(x, middle - half, middle + half), _mix(hair, BROW_BROWN, 0.45), alpha=235)


def _hair_front(canvas: Canvas, who: Identity, hair: Color) -> None:
    face, wide, top = who.face_width, who.face_width + who.hair_sides, 1 + who.hair_volume
    line, slope, part, end = who.hairline, who.fringe_slope, who.parting, who.hair_length
    if end > 0.25:
        lock = [(0.72 * face, -0.72), (wide, -0.5), (1.05 * wide, 0.4 * end), (0.98 * wide, end)]
        lock += [(0.95 * face, 0.9 * end), (0.94 * face, 0.1), (0.86 * face, -0.4)]
        outline = wavy(closed(lock), who.curl)
        for side in (-1, 1):
            canvas.polygon(outline * (side, 1), _shade(hair, 0.85), z=0.1)
    temple = _temple(who)
    crown = [(temple, -0.16), (0.5 * (wide + temple), -0.4), (0.97 * wide, -0.62)]
    crown += [(0.62 * wide, -0.9 * top - 0.04), (0.0, -top)]
    crown += [(-x, y) for x, y in crown[-2::-1]]
    brow = face * who.forehead
    # Kept within the outline of the head, or the background would show between it and the hair.
    left, right, gap = (max(y, -0.78) for y in (line - slope, line + slope, line - 0.1))
    fringe = [(-0.92 * face, -0.2), (-0.8 * brow, 0.75 * line), (-0.56 * brow, left), (part, gap)]
    fringe += [(0.56 * brow, right), (0.8 * brow, 0.75 * line), (0.92 * face, -0.2)]
    canvas.polygon(wavy(closed([*crown, *fringe]), who.curl), hair, z=0.2)
    depth = top + min(left, right, gap)
    arc = 0.55 * depth - top - 0.3 * depth * HUMP
    sheen = band(0.6 * wide * SPAN, arc, arc + 0.25 * depth * HUMP)
    canvas.polygon(sheen, _shade(hair, 1.3), z=0.35, alpha=90)


def _glasses(canvas: Canvas, who: Identity) -> None:
    color, radius = _palette(FRAME, who.frame_tone), who.lens_size
    weight = 0.02 + 0.03 * who.glasses
    rim = np.sign(CIRCLE) * np.abs(CIRCLE) ** (2 / who.lens_squareness) * (radius, 0.8 * radius)
    lens = rim * (1 - weight / radius)
    frame = np.concatenate([rim, rim[:1], lens[:1], lens[::-1]])
    hinge, ear = who.eye_spacing + radius, who.face_width
    arm = np.array([(hinge, -0.05), (ear, -0.05), (ear, 0.0), (hinge, 0.0)])
    for side in (-1, 1):
        middle = (side * who.eye_spacing, who.eye_y + 0.03)
        canvas.polygon(lens + middle, (225, 238, 250), z=0.7, alpha=40)
        canvas.polygon(frame + middle, color, z=0.7)
        canvas.polygon(arm * (side, 1) + (0, who.eye_y + 0.03), color, z=np.array([0.7, 0, 0, 0.7]))
    top = who.eye_y - 0.03 * HUMP
    canvas.polygon(
        band(SPAN * (who.eye_spacing - radius + weight), top, top + weight), color, z=0.74
    )


def _occluder(canvas: Canvas, who: Identity, shot: Shot, *, rng: np.random.Generator) -> None:
    """On one image of six: a cap, a mask, or something held before the camera."""
    color = _any_color(rng)
    if shot.occlusion < 0.05:
        wide, top = who.face_width + who.hair_sides, 1.04 + who.hair_volume
        cap = [(0, -top), (0.7 * wide, -0.9 * top), (1.04 * wide, -0.5), (0.8 * wide, -0.52)]
        canvas.polygon(symmetric([*cap, (0, -0.6)]), color, z=0.25)
        peak = [(0, -0.7), (0.75 * wide, -0.62), (0.7 * wide, -0.46), (0, -0.5)]
        canvas.polygon(symmetric(peak), _shade(color, 0.7), z=0.6)
    elif shot.occlusion < 0.07:
        mask = [(0, 0.24), (0.5, 0.3), (0.9 * who.face_width, 0.34), (0.6, 0.85), (0, 1.08)]
        canvas.polygon(symmetric(mask), color, z=0.45)
    elif shot.occlusion < 0.16:
        angle = rng.uniform(0, 2 * np.pi)
        middle = (0.95 * np.cos(angle), 0.95 * np.sin(angle))
        blob = middle + 0.5 * rng.uniform(0.6, 1.2, (6, 1)) * CIRCLE[::5]
        canvas.polygon(closed(blob), color, z=0.6)
