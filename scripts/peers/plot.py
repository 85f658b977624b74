"""Bars of tokens per second as an SVG file, each group relative to its best."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import median

from peers.contestants import MODELS, tests_of
from peers.table import Sample, number, series

COLORS = "#d1495b #edae49 #66a182 #00798c #2e4057 #8d96a3 #b56576 #6d597a #355070".split()
BAR, GAP, LABELS, LENGTH = 14, 18, 210, 520


def write(path: Path, samples: Sequence[Sample], names: Sequence[str]) -> None:
    """One group for every model and test, one bar for each of `names`."""
    lines, y = [], 30 + 16 * len(names)
    for i, name in enumerate(names):
        lines.append(f'<rect x="10" y="{10 + 16 * i}" width="12" height="12" fill="{color(i)}"/>')
        lines.append(f'<text x="28" y="{20 + 16 * i}">{escape(name)}</text>')
    for model in MODELS:
        for test in tests_of(model):
            figures = series(samples, model.name, test.name, "tokens_per_s")
            if not figures:
                continue
            medians = {name: median(values) for name, values in figures.items()}
            lines.append(f'<text x="10" y="{y + 12}">{escape(f"{model.name} {test.name}")}</text>')
            for i, name in enumerate(names):
                if name in medians:
                    width = LENGTH * medians[name] / max(medians.values())
                    lines.append(f'<rect x="{LABELS}" y="{y}" width="{width:.1f}" '
                                 f'height="{BAR - 2}" fill="{color(i)}"/>')  # fmt: skip
                    lines.append(f'<text x="{LABELS + width + 5:.1f}" y="{y + 10}">'
                                 f"{number(medians[name])}</text>")  # fmt: skip
                    y += BAR
            y += GAP
    size = f'width="{LABELS + LENGTH + 80}" height="{y}"'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    )
    background = '<rect width="100%" height="100%" fill="white"/>'
    path.write_text("\n".join([head, background, *lines, "</svg>"]) + "\n")


def color(i: int) -> str:
    return COLORS[i % len(COLORS)]
