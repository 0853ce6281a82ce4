"""What each class looks like, as data: the rule a haematologist goes by, and the numbers that draw it.

Colours are RGB in a standard May-Grünwald-Giemsa stain; the slide changes them afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

Colour = tuple[int, int, int]
Span = tuple[float, float]


@dataclass(frozen=True)
class Granules:
    """One kind of granules.

    Args:
        colour: Their colour.
        count: Fewest and most in one cell.
        radius_px: Smallest and largest radius.
        over_nucleus: They lie over the nucleus too, not only in the cytoplasm.
    """

    colour: Colour
    count: tuple[int, int]
    radius_px: Span
    over_nucleus: bool = False


@dataclass(frozen=True)
class CellLook:
    """How to draw one class.

    Args:
        rule: What the class is known by.
        diameter_px: Smallest and largest diameter of the cell.
        nucleus: Nuclear form, one of `shapes.NUCLEI`.
        nucleus_share: Diameter of the nucleus by that of the cell.
        eccentricity: How far the nucleus lies off the centre: 0 central, 1 touching the rim.
        chromatin: Texture, one of `textures.texture_tile` or `spokes`.
        chromatin_contrast: Strength of the texture in grey levels.
        nucleus_colour, cytoplasm: Colours.
        nucleoli: Fewest and most pale spots in the nucleus.
        granules: Kinds of granules, painted in this order.
        features: Any of `golgi`, `halo`, `vacuoles`, `hairs`, `rods`, `blebs`.
        kind: `cell`, `smudge` (burst nucleus), `debris` (no cell at all) or `lost` (out of focus).
    """

    rule: str
    diameter_px: Span = (110, 150)
    nucleus: str = "round"
    nucleus_share: Span = (0.6, 0.7)
    eccentricity: Span = (0.0, 0.5)
    chromatin: str = "coarse"
    chromatin_contrast: float = 26
    nucleus_colour: Colour = (92, 46, 138)
    cytoplasm: Colour = (222, 196, 222)
    nucleoli: tuple[int, int] = (0, 0)
    granules: tuple[Granules, ...] = ()
    features: frozenset[str] = frozenset()
    kind: str = "cell"


_PINK = (226, 194, 218)
_BLUE = (128, 140, 210)
_ROYAL_BLUE = (62, 72, 172)
_DENSE = (64, 28, 104)
_MATURE = (84, 38, 128)
_YOUNG = (122, 62, 162)
_ORANGE = (222, 98, 66)
_FINE = Granules((184, 112, 176), (70, 130), (0.9, 1.5))


LOOKS: Mapping[str, CellLook] = MappingProxyType(
    {
        "BLA": CellLook(
            rule="large round nucleus with fine chromatin and nucleoli; scant blue cytoplasm; no granules",
            diameter_px=(112, 152),
            nucleus_share=(0.80, 0.88),
            eccentricity=(0.2, 0.8),
            chromatin="fine",
            chromatin_contrast=14,
            nucleus_colour=_YOUNG,
            cytoplasm=_BLUE,
            nucleoli=(2, 4),
        ),
        "PMO": CellLook(
            rule="many coarse purple granules, over the nucleus too; eccentric nucleus; pale Golgi zone",
            diameter_px=(128, 164),
            nucleus_share=(0.62, 0.70),
            eccentricity=(0.6, 0.95),
            chromatin="fine",
            chromatin_contrast=18,
            nucleus_colour=(112, 56, 154),
            cytoplasm=(150, 156, 212),
            nucleoli=(0, 2),
            granules=(Granules((112, 22, 104), (90, 150), (1.6, 2.7), over_nucleus=True),),
            features=frozenset({"golgi"}),
        ),
        "MYB": CellLook(
            rule="round or oval eccentric nucleus, half of the cell; pinkish cytoplasm with fine granules",
            diameter_px=(118, 152),
            nucleus_share=(0.54, 0.62),
            eccentricity=(0.6, 0.95),
            nucleus_colour=(98, 48, 142),
            cytoplasm=(214, 188, 220),
            granules=(Granules((172, 96, 172), (80, 140), (1.0, 1.7)),),
        ),
        "MMZ": CellLook(
            rule="kidney-shaped nucleus; pink cytoplasm with fine granules",
            diameter_px=(112, 148),
            nucleus="kidney",
            nucleus_share=(0.62, 0.70),
            eccentricity=(0.2, 0.6),
            nucleus_colour=(90, 42, 134),
            cytoplasm=_PINK,
            granules=(_FINE,),
        ),
        "NGB": CellLook(
            rule="nucleus is a horseshoe band of even width; pink cytoplasm with fine granules",
            diameter_px=(106, 142),
            nucleus="band",
            nucleus_share=(0.64, 0.74),
            eccentricity=(0.0, 0.4),
            nucleus_colour=_MATURE,
            cytoplasm=_PINK,
            granules=(_FINE,),
        ),
        "NGS": CellLook(
            rule="three to five nuclear lobes joined by thin strands; pink cytoplasm with fine granules",
            diameter_px=(106, 142),
            nucleus="segmented",
            nucleus_share=(0.66, 0.78),
            eccentricity=(0.0, 0.3),
            nucleus_colour=(76, 32, 118),
            cytoplasm=_PINK,
            granules=(_FINE,),
        ),
        "EOS": CellLook(
            rule="two lobes; cytoplasm packed with large orange-red granules of one size",
            diameter_px=(112, 146),
            nucleus="bilobed",
            nucleus_share=(0.62, 0.72),
            eccentricity=(0.2, 0.7),
            nucleus_colour=_MATURE,
            cytoplasm=(236, 178, 160),
            granules=(Granules(_ORANGE, (190, 260), (2.5, 3.3)),),
        ),
        "ABE": CellLook(
            rule="eosinophil with large orange and large purple-black granules mixed",
            diameter_px=(118, 152),
            nucleus="bilobed",
            nucleus_share=(0.60, 0.70),
            eccentricity=(0.2, 0.7),
            nucleus_colour=(92, 42, 134),
            cytoplasm=(230, 180, 176),
            granules=(
                Granules(_ORANGE, (140, 190), (2.5, 3.3)),
                Granules((58, 18, 66), (28, 46), (3.0, 4.4), over_nucleus=True),
            ),
        ),
        "BAS": CellLook(
            rule="few large blue-black granules that cover the nucleus; pale cytoplasm",
            diameter_px=(104, 134),
            nucleus="kidney",
            nucleus_share=(0.62, 0.72),
            eccentricity=(0.0, 0.4),
            nucleus_colour=(132, 84, 168),
            cytoplasm=(214, 196, 226),
            granules=(Granules((34, 18, 72), (26, 42), (3.0, 5.0), over_nucleus=True),),
        ),
        "MON": CellLook(
            rule="large folded nucleus with loose chromatin; wide grey-blue cytoplasm with vacuoles",
            diameter_px=(128, 166),
            nucleus="folded",
            nucleus_share=(0.70, 0.80),
            eccentricity=(0.1, 0.6),
            chromatin_contrast=22,
            nucleus_colour=(112, 66, 156),
            cytoplasm=(166, 172, 204),
            features=frozenset({"vacuoles"}),
        ),
        "LYT": CellLook(
            rule="small; dense round nucleus with clumped chromatin fills the cell; thin pale-blue rim",
            diameter_px=(84, 108),
            nucleus_share=(0.84, 0.92),
            eccentricity=(0.2, 0.9),
            chromatin="clumped",
            nucleus_colour=_DENSE,
            cytoplasm=(150, 172, 226),
        ),
        "LYI": CellLook(
            rule="larger lymphoid cell; cleft nucleus with one nucleolus; more pale-blue cytoplasm",
            diameter_px=(112, 140),
            nucleus="cleft",
            nucleus_share=(0.70, 0.80),
            eccentricity=(0.3, 0.8),
            nucleus_colour=(106, 56, 150),
            cytoplasm=(156, 176, 228),
            nucleoli=(1, 1),
        ),
        "PLM": CellLook(
            rule="eccentric nucleus with wheel-spoke chromatin; deep-blue cytoplasm; pale halo beside it",
            diameter_px=(112, 148),
            nucleus_share=(0.46, 0.54),
            eccentricity=(0.85, 1.0),
            chromatin="spokes",
            chromatin_contrast=28,
            nucleus_colour=(98, 46, 136),
            cytoplasm=(82, 92, 182),
            features=frozenset({"halo"}),
        ),
        "HAC": CellLook(
            rule="lymphoid cell with fine hairs all round; oval nucleus; grey-blue cytoplasm",
            diameter_px=(98, 126),
            nucleus_share=(0.62, 0.72),
            eccentricity=(0.2, 0.7),
            nucleus_colour=(96, 52, 144),
            cytoplasm=(160, 170, 216),
            features=frozenset({"hairs"}),
        ),
        "PEB": CellLook(
            rule="very large round nucleus with granular chromatin and nucleoli; deep royal-blue cytoplasm",
            diameter_px=(128, 166),
            nucleus_share=(0.74, 0.82),
            eccentricity=(0.0, 0.4),
            nucleus_colour=(112, 40, 136),
            cytoplasm=_ROYAL_BLUE,
            nucleoli=(1, 3),
            features=frozenset({"blebs"}),
        ),
        "EBO": CellLook(
            rule="small, very dense round nucleus; smooth greyish-pink cytoplasm without granules",
            diameter_px=(84, 112),
            nucleus_share=(0.48, 0.60),
            eccentricity=(0.1, 0.6),
            chromatin="clumped",
            chromatin_contrast=16,
            nucleus_colour=(46, 20, 78),
            cytoplasm=(194, 176, 196),
        ),
        "FGC": CellLook(
            rule="bundles of needle-like Auer rods across a bilobed nucleus",
            diameter_px=(126, 162),
            nucleus="bilobed",
            nucleus_share=(0.66, 0.76),
            eccentricity=(0.0, 0.4),
            nucleus_colour=(118, 64, 158),
            cytoplasm=(178, 172, 220),
            granules=(Granules((134, 36, 120), (30, 60), (1.2, 2.0)),),
            features=frozenset({"rods"}),
        ),
        "KSC": CellLook(
            rule="burst nucleus smeared out, no outline, no cytoplasm",
            diameter_px=(130, 170),
            nucleus_colour=(150, 88, 170),
            kind="smudge",
        ),
        "ART": CellLook(rule="no cell: stain deposit, platelet clump or dirt", kind="debris"),
        "NIF": CellLook(rule="so far out of focus or covered that nobody can tell", kind="lost"),
        "OTH": CellLook(
            rule="none of the other classes: a cell in mitosis, or a giant cell with many nuclei",
            diameter_px=(128, 160),
            nucleus="mitosis",
            nucleus_share=(0.72, 0.84),
            eccentricity=(0.0, 0.15),
            nucleus_colour=(70, 26, 110),
            cytoplasm=(178, 176, 220),
        ),
    }
)
#: A second form of `OTH`: an osteoclast or megakaryocyte.
GIANT_CELL = CellLook(
    rule="giant cell with many nuclei in granular pink cytoplasm",
    diameter_px=(164, 190),
    nucleus="many",
    nucleus_share=(0.74, 0.84),
    eccentricity=(0.0, 0.15),
    nucleus_colour=(92, 44, 136),
    cytoplasm=(200, 170, 214),
    granules=(Granules((176, 96, 172), (110, 160), (1.0, 1.7)),),
)
