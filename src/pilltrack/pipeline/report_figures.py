"""The charts of the report as SVG to be set into HTML.

Text stays text and takes the colour of the page, so that one chart serves light and dark; it is
drawn at the width of a phone, where its letters keep their size. The same figures give the same
bytes.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pilltrack.pipeline.results import Curve, Mated, Strangers

WIDTH_IN, HEIGHT_IN = 4.6, 3.3  # 331 x 238 points: a point is a pixel on a phone
# Drawn in these colours, then replaced by those of the page.
TEXT, GRID, SEEN, NEW, STRANGERS = "#010101", "#020202", "#030303", "#040404", "#050505"
PAGE_COLOURS = {
    TEXT: "currentColor",
    GRID: "var(--line)",
    SEEN: "var(--seen)",
    NEW: "var(--new)",
    STRANGERS: "var(--strangers)",
}
MATED_LINES = {"seen": ("seen pills", SEEN), "new": ("new pills", NEW)}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pilltrack",
    "font.size": 10.5,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "grid.color": GRID,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "path.simplify": False,
}
N_BINS = 40
LOGIT_TICKS = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
TAIL = 0.02  # of all scores: the lowest share the first bin
LOGIT_ENDS = (0.0005, 0.9995)


def det_figure(
    curve: Curve, cohorts: Mapping[str, Mated], strangers: Strangers, promised_fpir: float
) -> str:
    """FNIR against FPIR on normal-like (logit) axes, the rule that ships as a dot.

    Left of 3 / n stranger pills the curve is shaded: so few strangers cannot tell.
    """
    with mpl.rc_context(STYLE):
        figure, axes = _axes("strangers accepted (FPIR)", "enrolled pills missed (FNIR)")
        unsupported = min(3 / strangers.n_pills, LOGIT_ENDS[1])
        axes.axvspan(LOGIT_ENDS[0], unsupported, color=GRID, alpha=0.5, linewidth=0)
        axes.axvline(promised_fpir, color=TEXT, linestyle=":", linewidth=1.2)
        axes.text(
            promised_fpir, 0.0006, " promised", rotation=90, va="bottom", ha="right", fontsize=9
        )
        for name, (label, colour) in MATED_LINES.items():
            fpir, fnir = (np.clip(curve[column], *LOGIT_ENDS) for column in ("fpir", name))
            axes.plot(fpir, fnir, color=colour, linewidth=2, label=label)
            shipped = [strangers.fpir.value, cohorts[name].decisions.fnir.value]
            axes.plot(*np.clip(shipped, *LOGIT_ENDS), "o", color=colour, markersize=7)
        axes.set_xscale("logit")
        axes.set_yscale("logit")
        axes.set(xlim=LOGIT_ENDS, ylim=LOGIT_ENDS)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(LOGIT_TICKS, [f"{100 * tick:g} %" for tick in LOGIT_TICKS])
            axis.set_ticks([], minor=True)
        axes.legend(loc="upper right")
        return _svg(
            figure,
            "det",
            "DET curve: share of enrolled pills missed against share of strangers accepted. "
            "The figures at the shipped rule stand in the headline table.",
        )


def scores_figure(scores: Mapping[str, Sequence[float]], threshold: float) -> str:
    """Histograms of the best score of each photo, by cohort, and the threshold.

    The lowest 2 % of all scores are gathered in the first bin: a long tail would leave no room
    for what lies around the threshold.
    """
    with mpl.rc_context(STYLE):
        figure, axes = _axes("score of the nearest pill", "share of photos")
        everything = np.concatenate([*scores.values()])
        low = min(float(np.quantile(everything, TAIL)), threshold)
        high = max(float(everything.max()), threshold)
        edges = np.linspace(low, high if high > low else low + 1e-3, N_BINS + 1)
        for name, label, colour in (
            ("strangers", "strangers", STRANGERS),
            ("new", "new pills", NEW),
            ("seen", "seen pills", SEEN),
        ):
            axes.stairs(
                np.histogram(np.maximum(scores[name], low), edges)[0] / len(scores[name]),
                edges,
                color=colour,
                label=label,
                linewidth=2,
                fill=name == "strangers",
                alpha=0.45 if name == "strangers" else 1.0,
            )
        axes.axvline(threshold, color=TEXT, linestyle=":", linewidth=1.2)
        to_the_left = threshold > (low + high) / 2
        axes.annotate(
            "threshold ",
            (threshold, 1.0),
            xycoords=("data", "axes fraction"),
            ha="right" if to_the_left else "left",
            va="top",
            fontsize=9,
        )
        axes.yaxis.set_major_formatter(_percent)
        axes.legend(loc="upper left" if to_the_left else "upper right")
        return _svg(
            figure,
            "scores",
            "Histograms of the best score of seen, new and stranger photos. A photo is accepted "
            f"from the threshold {threshold:.3f} on.",
        )


def references_figure(curve: Curve, cohorts: Mapping[str, Mated]) -> str:
    """recall@1 against references per side, with the intervals of metrics.json."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes("reference photos per side", "right pill is nearest (recall@1)")
        for shift, (name, (label, colour)) in zip((-0.03, 0.03), MATED_LINES.items(), strict=True):
            at, recall = np.array(curve["references"]), np.array(curve[name])
            axes.plot(at + shift, recall, "o-", color=colour, linewidth=2, label=label)
            for count, measured in cohorts[name].by_references.items():
                low, high = measured.recall_at_1.low, measured.recall_at_1.high
                if low is not None and high is not None:
                    axes.vlines(count + shift, low, high, color=colour, linewidth=1.2)
        axes.set_xticks(curve["references"], [f"{count:g}" for count in curve["references"]])
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(_percent)
        axes.legend(loc="lower right")
        text = "; ".join(
            f"{count:g}: seen {seen:.1%}, new {new:.1%}"
            for count, seen, new in zip(
                curve["references"], curve["seen"], curve["new"], strict=True
            )
        )
        return _svg(figure, "references", f"recall@1 by reference photos per side. {text}.")


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y)
    axes.grid(visible=True, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _percent(value: float, position: float) -> str:
    return f"{100 * value:.0f} %"


def _svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an <svg> element whose ids begin with `name`."""
    text = io.StringIO()
    nothing: Sequence[str] = ("Date", "Creator", "Format", "Type")
    figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(nothing))
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace('xlink:href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    for drawn, shown in PAGE_COLOURS.items():
        svg = svg.replace(drawn, shown)
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt" ', "", svg, count=1)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    label = html.escape(description)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
