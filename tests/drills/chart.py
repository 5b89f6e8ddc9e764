"""Draw what was done in each 100 ms of a failover."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench.report import machine

_STEP = 0.1
_MOMENTS = (
    ("killed", "primary killed", "#b03030"),
    ("promoted", "replica promoted", "#2e7d32"),
    ("old_one_back", "old primary back", "#777777"),
)


def write_chart(story: Mapping[str, Any], path: Path) -> None:
    """Write reads and writes over time as a PNG, from what a failover's JSON holds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(10, 5), sharex=True)
    for axes, name, colour in ((upper, "reads", "#336791"), (lower, "writes", "#b5651d")):
        rates = story[f"{name}_per_second"]
        axes.step([place * _STEP for place in range(len(rates))], rates, where="post", color=colour)
        axes.set_ylabel(f"{name} per second")
        axes.set_ylim(0, max([1.0, *rates]) * 1.25)
        axes.margins(x=0)
        for moment, text, line in _MOMENTS:
            at = story["moments"][moment]
            axes.axvline(at, color=line, linewidth=1, linestyle="--")
            if axes is upper:
                axes.annotate(
                    f"{text} ",
                    (at, axes.get_ylim()[1]),
                    color=line,
                    fontsize=8,
                    rotation=90,
                    ha="right",
                    va="top",
                )
    lower.set_xlabel("seconds")
    figure.suptitle(
        f"what clients had answered in each 100 ms; {machine()['processor']}, {machine()['cores']} cores",
        fontsize=9,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
