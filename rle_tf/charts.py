"""Reports as pictures."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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
    figure.savefig(path, format="png")


def comparison_chart(curves: dict[str, list[list[float]]], title: str, path: Path) -> None:
    """Draws how methods learn as a PNG: for each, over the epochs, the mean of its seeds' curves
    and the band that they lie in."""
    figure = Figure(figsize=(8, 5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for number, (method, of_seeds) in enumerate(curves.items()):
        values = np.array(of_seeds)
        epochs = np.arange(1, values.shape[1] + 1)
        style = ("-", "--", ":")[number // 10 % 3]
        axes.plot(epochs, values.mean(axis=0), style, color=f"C{number}", label=method)
        low, high = values.min(axis=0), values.max(axis=0)
        axes.fill_between(epochs, low, high, color=f"C{number}", alpha=0.15, linewidth=0)
    axes.set(
        title=title,
        xlabel="epoch",
        ylabel="joints off by less than 5 % of the crop",
        ylim=(0, None),
    )
    axes.grid(alpha=0.25)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    # Beside it: a dozen names hide a dozen curves.
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, format="png")


def density_chart(draws: np.ndarray, title: str, path: Path) -> None:
    """Draws the density of residuals that a loss has learned as a PNG: of x and y together, and of
    each coordinate beside a normal and a Laplace density as wide as it is.

    Args:
        draws: (n, D) residuals, as `PoseLoss.draws` gives them.
        title: Of the picture.
        path: The file.
    """
    dims = draws.shape[1]
    figure = Figure(figsize=(4 * (dims + 1), 4), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=11)
    together, *alone = figure.subplots(1, dims + 1)
    # Tails are long: as much as 99 % of the draws need.
    reach = float(np.quantile(np.abs(draws), 0.99))
    edges = np.linspace(-reach, reach, 81)
    counts, *_ = np.histogram2d(draws[:, 1], draws[:, 0], bins=[edges, edges], density=True)
    together.pcolormesh(edges, edges, np.sqrt(counts), cmap="Blues")
    together.set(
        title="x and y (square root of the density)", xlabel="x, in sigmas", ylabel="y, in sigmas",
        aspect="equal",
    )  # fmt: skip
    together.invert_yaxis()  # as in the image
    places = (edges[1:] + edges[:-1]) / 2
    for axes, name, column in zip(alone, "xyz", draws.T, strict=False):
        density, _ = np.histogram(column, bins=edges)
        axes.stairs(density / len(column) / np.diff(edges), edges, fill=True, color=_MAIN,
                    alpha=0.5, label="learned")  # fmt: skip
        middle = np.median(column)
        deviation = np.quantile(np.abs(column - middle), 0.6827)
        scale = deviation / -np.log(1 - 0.6827)
        offset = (places - middle) / deviation
        normal = np.exp(-(offset**2) / 2) / (deviation * np.sqrt(2 * np.pi))
        laplace = np.exp(-np.abs(places - middle) / scale) / (2 * scale)
        axes.plot(places, normal, color=_OTHER, label="normal")
        axes.plot(places, laplace, "--", color=_THIRD, label="Laplace")
        axes.set(title=name, xlabel=f"{name}, in sigmas", xlim=(-reach, reach), ylim=(0, None))
        axes.legend(loc="upper right", frameon=False, fontsize=8)
    figure.savefig(path, format="png")


def joint_densities_chart(
    draws: np.ndarray, joints: tuple[str, ...], title: str, path: Path
) -> None:
    """Draws the density of x and y of each joint as a PNG, for flows that are each joint's own.

    Args:
        draws: (n, K, D) residuals.
        joints: K names.
        title, path: As in `density_chart`.
    """
    columns = min(5, len(joints))
    rows = -(-len(joints) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.3 * rows + 0.4), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=11)
    reach = float(np.quantile(np.abs(draws[..., :2]), 0.98))
    edges = np.linspace(-reach, reach, 51)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, name, of_joint in zip(grid, joints, draws.swapaxes(0, 1), strict=False):
        counts, *_ = np.histogram2d(of_joint[:, 1], of_joint[:, 0], bins=[edges, edges])
        axes.pcolormesh(edges, edges, np.sqrt(counts), cmap="Blues")
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.set(aspect="equal", xlim=(-reach, reach), ylim=(reach, -reach))
    for axes in grid[len(joints) :]:
        axes.set_axis_off()
    figure.savefig(path, format="png")


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
