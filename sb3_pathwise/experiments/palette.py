"""
The look of an algorithm: its colour, the same in every figure of every report, and what tells it apart without colour.

The colours are those of Okabe and Ito (2008), made for colour-blind readers, and of Paul Tol's "muted" scheme; those of our
keys with another critic are as far from these as could be found: violet the pathwise route, brown the likelihood ratio.
"""

import hashlib
from dataclasses import dataclass

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
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1, 1.5), (6, 2, 1, 2), (3, 1, 1, 1, 1, 1))
MARKERS = "osD^vPX<>p*h"


@dataclass(frozen=True)
class Style:
    """
    :param colour: As ``#rrggbb``
    :param dash: Lengths of dashes and gaps, in line widths; empty: a solid line
    :param marker: matplotlib's letter
    """

    colour: str
    dash: tuple[float, ...]
    marker: str


def colour(variant: str) -> str:
    """
    :param variant: An algorithm's zoo key, or a variant of it
    :return: The key's colour; for a variant, a tint of it that depends on the variant's text alone
    """
    algo, _, overrides = variant.partition(":")
    base = COLOURS.get(algo) or list(COLOURS.values())[_number(algo) % len(COLOURS)]
    if not overrides:
        return base
    # Towards black or towards white, far enough to be seen and not so far as to vanish on paper
    tint = (_number(overrides) % 1000) / 999
    target, share = (0, 0.25 + 0.3 * tint) if _number(overrides) % 2 else (255, 0.2 + 0.25 * tint)
    channels = (int(base[place : place + 2], 16) for place in (1, 3, 5))
    return "#" + "".join(f"{round(channel + (target - channel) * share):02X}" for channel in channels)


def _number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)


def styles(variants: list[str]) -> dict[str, Style]:
    """
    :param variants: Of one comparison
    :return: Their looks: solid for an algorithm itself, dashed for its variants, a marker of its own for each
    """
    found: dict[str, Style] = {}
    seen: dict[str, int] = {}
    for place, variant in enumerate(variants):
        algo, _, overrides = variant.partition(":")
        if overrides:
            seen[algo] = seen.get(algo, 0) + 1
        # Never the solid line, which is the algorithm's own
        dash = DASHES[1 + (seen[algo] - 1) % (len(DASHES) - 1)] if overrides else DASHES[0]
        found[variant] = Style(colour(variant), dash, MARKERS[place % len(MARKERS)])
    return found
