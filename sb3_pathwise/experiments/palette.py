"""
The look of an algorithm: its colour, the same in every figure of every report, and what tells it apart without colour.

The colours are those of Okabe and Ito (2008), made for colour-blind readers, and of Paul Tol's "muted" scheme; those of our
keys with another critic are as far from these as could be found: violet the pathwise route, brown the likelihood ratio.
"""

import itertools
import zlib
from typing import NamedTuple

COLOURS = {
    "pathwise_ac": "#0072B2",
    "likelihood_ratio_ac": "#D55E00",
    "measure_valued_ac": "#009E73",
    "mixed_ac": "#CC79A7",
    "pathwise_tqc": "#A680FF",
    "likelihood_ratio_tqc": "#805E2D",
    "pathwise_crossq": "#4F24B2",
    "likelihood_ratio_crossq": "#4C2E00",
    "sac": "#333333",
    "tqc": "#E69F00",
    "crossq": "#56B4E9",
    "td3": "#882255",
    "ddpg": "#999933",
    "ppo": "#332288",
    "a2c": "#AA4499",
    "trpo": "#117733",
    "ars": "#88CCEE",
    "dqn": "#CC6677",
    "qrdqn": "#DDCC77",
    "ppo_lstm": "#44AA99",
}
# Variants of an algorithm, in turn: dashes and gaps in line widths, and the target and the share of its way there
VARIANTS: tuple[tuple[tuple[float, ...], int, float], ...] = (
    ((5, 2), 255, 0.35),
    ((1, 1.5), 0, 0.4),
    ((6, 2, 1, 2), 255, 0.2),
    ((3, 1, 1, 1, 1, 1), 0, 0.2),
    ((2, 2), 255, 0.45),
)
MARKERS = "osD^vPX<>p*h"


class Style(NamedTuple):
    """Colour as ``#rrggbb``, lengths of dashes and gaps in line widths (none: a solid line), and matplotlib's marker."""

    colour: str
    dash: tuple[float, ...]
    marker: str


def colour(algo: str) -> str:
    """:return: A zoo key's colour; that of an unknown one depends on its name alone"""
    return COLOURS.get(algo) or list(COLOURS.values())[zlib.crc32(algo.encode()) % len(COLOURS)]


def styles(variants: list[str]) -> dict[str, Style]:
    """
    :param variants: Of one comparison
    :return: Their looks: an algorithm's own colour and a solid line; for its variants tints of it and dashes, in the order of
        the comparison; and a marker of its own for each
    """
    found: dict[str, Style] = {}
    for marker, variant in zip(itertools.cycle(MARKERS), variants, strict=False):
        algo, _, overrides = variant.partition(":")
        tint, dash = colour(algo), tuple[float, ...]()
        if overrides:
            siblings = [other for other in variants if other.startswith(f"{algo}:")]
            dash, target, share = VARIANTS[siblings.index(variant) % len(VARIANTS)]
            channels = (int(tint[start : start + 2], 16) for start in (1, 3, 5))
            tint = "#" + "".join(f"{round(channel + (target - channel) * share):02X}" for channel in channels)
        found[variant] = Style(tint, dash, marker)
    return found
