"""Invented pills: what the rendered data set is made of.

`invent_pills` draws pills as a pharmacy's shelf would hold them: white and round most often, many
coloured, capsules in two colours, a few odd shapes. Coloured pills and marked backs are more
frequent than on a real shelf, so that minutes of training have something to show. About a quarter
stand in families of two to four that agree in everything but the imprint, or in everything but
the size: the look-alikes that make pill identification hard. Names, makers and codes are made up.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from pilltrack.pipeline.pillshape import LOGOS, Body, Face, Profile, Shape

Colour = tuple[float, float, float]  # reflectance in sRGB, 0 to 1
Finish = Literal["matte", "coated", "shell", "gel"]
Key = TypeVar("Key", bound=str)

FAMILY_SHARE = 0.25  # of all pills that belong to a family of look-alikes
SIZE_STEP = 1.17  # between the sizes of one family
FRAME = (1.2, 1.5)  # side of the frame, in longer sides of the longest pill it is set up for
LONGEST_MM = 20.0
WIDEST_MM = 14.5  # of pills as wide as long

COLOURS: dict[str, tuple[float, list[Colour]]] = {
    "white": (0.26, [(0.93, 0.93, 0.92), (0.91, 0.91, 0.89), (0.93, 0.91, 0.88)]),
    "off-white": (0.07, [(0.90, 0.87, 0.79), (0.88, 0.83, 0.72)]),
    "yellow": (0.13, [(0.93, 0.84, 0.42), (0.94, 0.80, 0.22), (0.91, 0.86, 0.60)]),
    "pink": (0.12, [(0.90, 0.66, 0.68), (0.86, 0.48, 0.56), (0.92, 0.76, 0.75)]),
    "orange": (0.11, [(0.93, 0.60, 0.30), (0.91, 0.52, 0.20), (0.93, 0.72, 0.52)]),
    "blue": (0.12, [(0.50, 0.66, 0.84), (0.20, 0.42, 0.74), (0.66, 0.77, 0.88)]),
    "green": (0.08, [(0.52, 0.74, 0.56), (0.16, 0.52, 0.40), (0.70, 0.83, 0.66)]),
    "red": (0.05, [(0.72, 0.16, 0.16), (0.60, 0.20, 0.18)]),
    "brown": (0.06, [(0.52, 0.32, 0.20), (0.66, 0.46, 0.30)]),
}
SHAPES: dict[Shape, float] = {
    "round": 0.32, "caplet": 0.17, "oval": 0.15, "capsule": 0.17, "softgel": 0.05,
    "diamond": 0.03, "triangle": 0.03, "square": 0.03, "pentagon": 0.02, "hexagon": 0.03,
}  # fmt: skip
MAKERS = ("Arboretum", "Bellweather", "Corvid Labs", "Dunmore", "Eastlight", "Fennimore", "Grell")
# Syllables without the stems that tell real drugs apart (-pril, -olol, -statin, -mab, ...).
_FIRST = ("Vexo", "Quor", "Zylu", "Brin", "Thessa", "Jovi", "Wexa", "Kiru", "Plovu", "Duxo")
_SECOND = ("tha", "mun", "gri", "sto", "bre", "kal", "wi", "fno", "dju", "pex")
_THIRD = ("vork", "dorle", "quint", "mulf", "zend", "hask", "yorn", "blex", "trug", "wemp")
_STRENGTHS = ("5 mg", "10 mg", "20 mg", "25 mg", "40 mg", "50 mg", "75 mg", "100 mg", "150 mg",
              "200 mg", "250 mg", "300 mg", "400 mg", "500 mg", "600 mg", "800 mg")  # fmt: skip
_TURNED = str.maketrans("69MW", "96WM")


@dataclass(frozen=True)
class InventedPill:
    """One identity: its name, its body, its two faces and what it is made of."""

    pill: str
    name: str
    ndc: str
    strength: str
    maker: str
    family: int | None  # look-alikes share a number
    body: Body
    finish: Finish
    colour_name: str
    colours: tuple[Colour, Colour]  # left and right half of a capsule, else front and back layer
    ink: Colour
    speckles: float  # share of the surface, 0 for plain
    front: Face
    back: Face
    frame_mm: float  # what the camera sees: set up once for a pill, or for a whole family

    @property
    def imprint(self) -> str:
        """Both faces, as a table would give them."""
        return ";".join(text for text in (self.front.text, self.back.text) if text)


def invent_pills(n_pills: int, seed: int) -> list[InventedPill]:
    """Draw `n_pills` pills; the same seed and number give the same pills.

    Members of a family stand next to each other, differ only in the front imprint or only in
    size (each at least 15 % larger than the one before), and their imprints are unlike.
    """
    rng = np.random.default_rng([seed, 0])
    pills: list[InventedPill] = []
    taken: set[str] = set()
    family = 0
    while len(pills) < n_pills:
        first = _invent(len(pills), rng, taken)
        room = n_pills - len(pills)
        # A family has three members on average, so fewer founders than FAMILY_SHARE are needed.
        if room >= 2 and rng.random() < FAMILY_SHARE / (3 - 2 * FAMILY_SHARE):
            family += 1
            size = min(room, int(rng.integers(2, 5)))
            pills.extend(_family(replace(first, family=family), size, rng, taken))
        else:
            pills.append(first)
    return pills


def _family(
    first: InventedPill, size: int, rng: np.random.Generator, taken: set[str]
) -> list[InventedPill]:
    by_size = rng.random() < 0.4
    founder_mm = first.body.length_mm
    same_drug = by_size or rng.random() < 0.6
    strengths: list[int] = np.sort(rng.choice(len(_STRENGTHS), size, replace=False)).tolist()
    if by_size:  # the smallest must leave room for its siblings
        body = first.body
        limit_mm = WIDEST_MM if body.width_mm > 0.8 * body.length_mm else LONGEST_MM
        shrink = min(1.0, limit_mm / (body.length_mm * SIZE_STEP ** (size - 1)))
        first = replace(first, body=_scaled(body, shrink))
    elif not first.front.lines:
        first = replace(first, front=replace(first.front, lines=(_code(rng, taken),)))
    longest_mm = first.body.length_mm * (SIZE_STEP ** (size - 1) if by_size else 1)
    first = replace(first, frame_mm=longest_mm * first.frame_mm / founder_mm)
    members = [replace(first, strength=_STRENGTHS[strengths[0]])]
    for step in range(1, size):
        number = int(first.pill.split("-")[1]) + step
        member = replace(
            first,
            pill=f"synth-{number:04d}",
            ndc=_ndc(number),
            name=first.name if same_drug else _name(rng, taken),
            strength=_STRENGTHS[strengths[step]],
        )
        if by_size:
            member = replace(member, body=_scaled(first.body, SIZE_STEP**step))
        else:
            lines = (*first.front.lines[:-1], _code(rng, taken, len(first.front.lines[-1])))
            front = replace(first.front, lines=lines)
            back = front if first.back == first.front else first.back
            member = replace(member, front=front, back=back)
        members.append(member)
    return members


def _invent(index: int, rng: np.random.Generator, taken: set[str]) -> InventedPill:
    shape = _pick(SHAPES, rng)
    body = _body(shape, rng)
    finish: Finish = "matte" if rng.random() < 0.55 else "coated"
    if shape == "capsule":
        finish = "shell"
    elif shape == "softgel":
        finish = "gel"
    names = {name: share for name, (share, _) in COLOURS.items()}
    if finish in ("shell", "gel"):  # shells are more colourful than tablets
        names = {name: share**0.6 for name, share in names.items()}
    colour_name = _pick(names, rng)
    colour = _shade(colour_name, rng)
    second, second_name = colour, ""
    if (finish == "shell" and rng.random() < 0.6) or (finish == "matte" and rng.random() < 0.05):
        second_name = _pick({n: s for n, s in names.items() if n != colour_name}, rng)
        second = _shade(second_name, rng)
    dark = 0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2] < 0.45
    ink: Colour = (
        (0.92, 0.92, 0.90)
        if dark
        else ((0.12, 0.12, 0.14), (0.5, 0.1, 0.1))[int(rng.random() < 0.15)]
    )
    speckles = float(rng.uniform(0.05, 0.3)) if finish == "matte" and rng.random() < 0.2 else 0.0
    front, back = _faces(shape, finish, rng, taken)
    return InventedPill(
        pill=f"synth-{index + 1:04d}",
        name=_name(rng, taken),
        ndc=_ndc(index + 1),
        strength=_STRENGTHS[int(rng.integers(len(_STRENGTHS)))],
        maker=MAKERS[int(rng.integers(len(MAKERS)))],
        family=None,
        body=body,
        finish=finish,
        colour_name=f"{colour_name}/{second_name}" if second_name else colour_name,
        colours=(colour, second),
        ink=ink,
        speckles=speckles,
        front=front,
        back=back,
        frame_mm=body.length_mm * float(rng.uniform(*FRAME)),
    )


def _body(shape: Shape, rng: np.random.Generator) -> Body:
    profile: Profile
    if shape == "round":
        length = width = float(np.clip(rng.normal(10.0, 1.8), 7.5, 14))
    elif shape in ("oval", "caplet"):
        length = float(np.clip(rng.normal(15.5, 2.6), 10, LONGEST_MM))
        width = length * float(rng.uniform(0.4, 0.62))
    elif shape == "capsule":
        length = float(rng.choice([14.3, 15.9, 18.0, 19.4]))
        width = length * 0.36
    elif shape == "softgel":
        length = float(rng.uniform(11, 19))
        width = length * float(rng.uniform(0.5, 0.66))
    elif shape == "diamond":
        length = float(rng.uniform(11, 14))
        width = length * float(rng.uniform(0.66, 0.8))
    else:
        length = width = float(rng.uniform(9, 12.5))
    if shape in ("capsule", "softgel"):
        profile = "roll"
    else:
        profile = _pick({"flat": 0.25, "bevel": 0.25, "convex": 0.5}, rng)
    dome = float(rng.uniform(0.06, 0.13)) * width if profile == "convex" else 0.01 * width
    edge = float(rng.uniform(0.3, 0.6))
    return Body(shape, round(length, 2), round(width, 2), profile, edge, dome)


def _faces(
    shape: Shape, finish: Finish, rng: np.random.Generator, taken: set[str]
) -> tuple[Face, Face]:
    printed = finish in ("shell", "gel") or (finish == "coated" and rng.random() < 0.15)
    weight = int(rng.integers(500, 720) if printed else rng.integers(300, 560))
    style = Face(
        technique="printed" if printed else "debossed",
        weight=weight,
        depth_mm=float(rng.uniform(0.1, 0.2)),
    )
    code = _code(rng, taken)
    kind = rng.random()
    logo = LOGOS[int(rng.integers(len(LOGOS)))]
    if kind < 0.5:
        front = replace(style, lines=(code,))
    elif kind < 0.8:
        front = replace(style, lines=(_letters(rng), code))
    elif kind < 0.95:
        front = replace(style, logo=logo, lines=(code,))
    else:
        front = replace(style, logo=logo)
    back = style
    other = rng.random()
    if shape == "capsule":
        back = front if other < 0.5 else style
    elif other < 0.5:
        back = replace(style, lines=(_code(rng, taken),))
    elif other < 0.6:
        back = replace(style, logo=LOGOS[int(rng.integers(len(LOGOS)))])
    if finish in ("matte", "coated") and not printed and shape != "triangle":
        scored = rng.random()
        if scored < 0.22:
            back = replace(back, score="half")
        elif scored < 0.25 and shape in ("round", "square"):
            back = replace(style, score="cross")
        elif scored < 0.4 and len(front.lines) + bool(front.logo) == 2:
            front = replace(front, score="half")
    return front, back


def _scaled(body: Body, factor: float) -> Body:
    return replace(
        body,
        length_mm=round(body.length_mm * factor, 3),
        width_mm=round(body.width_mm * factor, 3),
        edge_mm=body.edge_mm * factor,
        dome_mm=body.dome_mm * factor,
    )


def _shade(colour_name: str, rng: np.random.Generator) -> Colour:
    shades = COLOURS[colour_name][1]
    base = shades[int(rng.integers(len(shades)))]
    spread = 0.012 if colour_name in ("white", "off-white") else 0.035
    red, green, blue = (float(np.clip(c + rng.normal(0, spread), 0.04, 0.95)) for c in base)
    return red, green, blue


def _name(rng: np.random.Generator, taken: set[str]) -> str:
    while True:
        parts = [str(rng.choice(pool)) for pool in (_FIRST, _SECOND, _THIRD)]
        name = "".join(parts[: 2 + int(rng.random() < 0.6)])
        name = name if name not in taken else "".join(parts) + str(len(taken))
        if name not in taken:
            taken.add(name)
            return name


def _code(rng: np.random.Generator, taken: set[str], length: int | None = None) -> str:
    """An imprint that no other pill carries; a longer one when the short ones are taken."""
    for attempt in itertools.count():
        n = length or int(rng.choice([1, 2, 3, 4], p=[0.06, 0.34, 0.44, 0.16]))
        n += attempt // 50
        if rng.random() < 0.72 or n == 1:
            code = "".join(str(rng.integers(10)) for _ in range(n))
            code = code if code[0] != "0" else "7" + code[1:]
        else:
            head = _letters(rng)[: n - 1]
            code = head + "".join(str(rng.integers(1, 10)) for _ in range(n - len(head)))
        if "code " + code not in taken:
            break
    # 68 turned half round reads 89: such a pair would be one and the same imprint.
    taken.update({"code " + code, "code " + code[::-1].translate(_TURNED)})
    return code


def _letters(rng: np.random.Generator) -> str:
    pool = "ABCDEFGHJKLMNPRSTUVWXYZ"
    return "".join(pool[int(rng.integers(len(pool)))] for _ in range(int(rng.integers(1, 4))))


def _ndc(number: int) -> str:
    """Labeler 00000 is nobody's."""
    return f"00000-{number:04d}"


def _pick(shares: Mapping[Key, float], rng: np.random.Generator) -> Key:
    keys = list(shares)
    weights = np.array([shares[key] for key in keys])
    return keys[int(rng.choice(len(keys), p=weights / weights.sum()))]
