"""Draw what was done in each 100 ms of a failover."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench.report import machine

_STEP = 0.1
_MOMENTS = (
    ("killed", "primary killed"),
    ("promoted", "replica promoted"),
    ("old_one_back", "old primary back"),
)
_SHADES = ("#336791", "#7aa6c9", "#c3d7e6", "#e2ebf2")


def write_chart(story: Mapping[str, Any], path: Path) -> None:
    """Write reads, by the server that answered them, and writes over time as a PNG, from a failover's JSON."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(10, 5), sharex=True)
    served: Mapping[str, list[float]] = story["reads_per_second_by_server"]
    times = [place * _STEP for place in range(len(story["writes_per_second"]))]
    labels = [f"served by {name}" for name in served]
    upper.stackplot(times, *served.values(), labels=labels, colors=_SHADES, step="post")
    upper.set_ylabel("reads per second")
    upper.set_ylim(0, max(story["reads_per_second"]) * 1.4)
    upper.legend(loc="upper left", fontsize=8, ncols=4, frameon=False)
    lower.stackplot(times, story["writes_per_second"], colors=("#b5651d",), step="post")
    lower.set_ylabel("writes per second")
    lower.set_xlabel("seconds")
    for axes in (upper, lower):
        axes.margins(x=0)
        for moment, _ in _MOMENTS:
            axes.axvline(story["moments"][moment], color="#b03030", linewidth=1, linestyle="--")
    for moment, text in _MOMENTS:
        place = (story["moments"][moment], 1.01)
        upper.annotate(text, place, xycoords=("data", "axes fraction"), fontsize=8, ha="center", va="bottom")
    facts = machine()
    figure.suptitle(f"answers in each 100 ms; {facts['processor']}, {facts['cores']} cores", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
