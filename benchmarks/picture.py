"""One picture of all judged figures: small multiples, a bar per contender, ours in colour."""

import io
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from benchmarks.contenders import Us
from benchmarks.report import Result, figure, judged
from benchmarks.works import Column

COLUMNS, SLOTS = 4, 7
PAPER, INK, FAINT, OURS, PEER, UNCOMPARED = "#ffffff", "#1f2328", "#656d76", "#d9480f", "#8c959f", "#d0d7de"
DARK = {PAPER: "#0d1117", INK: "#e6edf3", FAINT: "#9198a1", OURS: "#ff8c42", PEER: "#6e7681", UNCOMPARED: "#3d444d"}


def draw(path: Path, results: list[Result]) -> None:
    """Write the picture as SVG that follows the reader's light or dark mode."""
    panels = [(result, column) for result, column in judged(results) if any(_bars(result, column))]
    rows = max(-(-len(panels) // COLUMNS), 1)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "benchmarks", "font.family": "sans-serif"}):
        sheet = Figure(
            figsize=(3.6 * COLUMNS, 2.35 * rows),
            facecolor=PAPER,
            layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12),
        )
        grid = sheet.subplots(rows, COLUMNS, squeeze=False).flatten().tolist()
        for axes, (result, column) in zip(grid, panels, strict=False):
            _panel(axes, result, column)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        drawn = io.StringIO()
        sheet.savefig(drawn, format="svg", metadata={"Date": None})
    path.write_text(_following_the_reader(drawn.getvalue()))


def _bars(result: Result, column: Column) -> list[tuple[str, float]]:
    medians = ((name, measured.median(column.figure)) for name, measured in result.measured.items())
    return [(name, value) for name, value in medians if value is not None]


def _panel(axes: Axes, result: Result, column: Column) -> None:
    bars = _bars(result, column)
    names = [name for name, _ in bars]
    colours = [OURS if name == Us.name else PEER if result.compared(name) else UNCOMPARED for name in names]
    values = [max(value, 0) for _, value in bars]
    drawn = axes.barh([result.contenders[name].title for name in names], values, color=colours, height=0.72)
    axes.bar_label(drawn, [figure(result, column, name) for name in names], padding=4, color=INK, fontsize=9)
    axes.set_ylim(max(len(bars), SLOTS) - 0.4, -0.6)  # the first at the top, and bars as thick as everywhere
    axes.set_xlim(0, (max(values) or 1) * 1.28)
    axes.set_xticks([])
    axes.set_facecolor(PAPER)
    axes.spines[:].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK)
    ratio = result.ratio(column)
    told = f"{column.heading}" + (f"  ·  {ratio:.2f} x the best peer" if ratio else "")
    axes.set_title(f"({result.work.letter}) {result.work.title}", loc="left", fontsize=10.5, color=INK, pad=18)
    axes.text(0, 1.04, told, transform=axes.transAxes, fontsize=8.5, color=FAINT)


def _following_the_reader(svg: str) -> str:
    """Add the dark colours; a program that ignores the style sheet shows the light ones."""
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark} !important}}'
        for light, dark in DARK.items()
        for kind in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    head, opening, rest = svg.partition("<defs>")
    return f"{head}{style}{opening}{rest}"
