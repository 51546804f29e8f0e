"""A calibration's report as a picture."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

# Of the drawn people, too: what is right, what is beside it, what is common.
_MAIN, _OTHER, _THIRD, _GREY = "#1f77b4", "#d1495b", "#7a9e3f", "#9aa3ad"


def calibration_chart(report: dict, title: str, path: Path) -> None:
    """Draws what `rle_tf.calibration.calibration_report` gives as a PNG: reliability diagram,
    coverage of the regions, risk by how many joints are kept, and coverage joint by joint."""
    figure = Figure(figsize=(11, 8.5), dpi=110, layout="constrained")
    (reliability, coverage), (risk, joints) = figure.subplots(2, 2)
    figure.suptitle(f"{title}: {report['people']} people, {report['labelled']} joints", fontsize=11)
    _reliability(reliability, report)
    _coverage(coverage, report)
    _risk(risk, report)
    _joints(joints, report)
    figure.savefig(path)


def _diagonal(axes) -> None:
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle=":", linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.25)


def _reliability(axes, report: dict) -> None:
    bins = report["bins"]
    _diagonal(axes)
    share = np.array([entry["joints"] for entry in bins]) / report["labelled"]
    confidence = [entry["confidence"] for entry in bins]
    axes.bar(confidence, share, width=0.06, color=_GREY, alpha=0.45, label="share of the joints")
    axes.plot(confidence, [entry["correct"] for entry in bins], "o-", color=_MAIN, label="correct")
    axes.set(
        title=f"Reliability: ECE {report['ece']:.3f}, Brier {report['brier']:.3f}",
        xlabel="confidence",
        ylabel="off by less than 10 % of the size",
    )
    axes.legend(loc="upper left", frameon=False)


def _coverage(axes, report: dict) -> None:
    _diagonal(axes)
    for key, label, colour, marker in (
        ("coverage", "calibrated", _MAIN, "o-"),
        ("coverage_uncalibrated", "density as trained", _OTHER, "s--"),
        ("coverage_normal", "normal density", _THIRD, "^--"),
    ):
        levels = [float(level) for level in report[key]]
        axes.plot(levels, list(report[key].values()), marker, color=colour, label=label)
    axes.set(title="Coverage of credible regions", xlabel="nominal", ylabel="joints inside")
    axes.legend(loc="lower right", frameon=False)


def _risk(axes, report: dict) -> None:
    axes.plot(report["coverage_kept"], report["risk"], color=_MAIN)
    axes.axhline(report["risk"][-1], color=_GREY, linestyle=":", label="without confidence")
    axes.set(
        title=f"Risk of the surest joints: area {report['aurc']:.3f}",
        xlabel="share kept",
        ylabel="wrong among them",
        xlim=(0, 1),
        ylim=(0, None),
    )
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", frameon=False)


def _joints(axes, report: dict) -> None:
    rows = {name: entry for name, entry in report["joints"].items() if entry["labelled"]}
    places = np.arange(len(rows))[::-1]
    for level, colour, marker in (("0.5", _OTHER, "s"), ("0.9", _MAIN, "o")):
        inside = [entry["coverage"][level] for entry in rows.values()]
        axes.axvline(float(level), color=colour, linestyle=":", linewidth=1)
        axes.plot(inside, places, marker, color=colour, label=f"{float(level):.0%} regions")
    axes.set(title="Coverage by joint", xlabel="joints inside", xlim=(0, 1))
    axes.set_yticks(places, [name.replace("_", " ") for name in rows], fontsize=8)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower left", frameon=False, fontsize=8)
