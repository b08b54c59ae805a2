"""The evaluation's pictures. matplotlib with its file-only backend; equal reports give equal bytes."""

from pathlib import Path
from typing import Any

from tasks.evaluate.report import Report

_SIZE_INCHES = (6.4, 4.0)
_DPI = 120
_OWN, _OTHER, _LINE = "#2563eb", "#94a3b8", "#64748b"


def plot_names(report: Report) -> tuple[str, ...]:
    """Returns the names of the pictures that `draw` makes of this report."""
    names = ["calibration.png", "loss_by_length.png"]
    return tuple([*names, "bits_per_byte.png"] if report.baselines else names)


def draw(name: str, report: Report, *, path: Path) -> None:
    """Writes the picture `name` of `plot_names` to `path` as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    {"calibration.png": _calibration, "loss_by_length.png": _loss_by_length, "bits_per_byte.png": _bits_per_byte}[name](axes, report)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png", metadata={"Software": None})


def _calibration(axes: Any, report: Report) -> None:
    bins = [entry for entry in report.calibration.bins if entry.tokens]
    width = 1 / len(report.calibration.bins)
    axes.bar([(entry.lower + entry.upper) / 2 for entry in bins], [entry.accuracy for entry in bins], width=0.9 * width, color=_OWN, label="accuracy")
    axes.plot([0, 1], [0, 1], color=_LINE, linestyle="--", linewidth=1, label="perfectly calibrated")
    axes.scatter([entry.confidence for entry in bins], [entry.accuracy for entry in bins], color=_LINE, s=12, zorder=3, label="mean confidence")
    axes.set(xlabel="confidence in the first guess", ylabel="share of right guesses", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(f"Calibration: expected error {report.calibration.expected_error:.3f} over {report.overall.tokens:,} tokens")
    axes.legend(frameon=False)


def _loss_by_length(axes: Any, report: Report) -> None:
    names = [part.name for part in report.by_length]
    values = [part.scores.bits_per_byte for part in report.by_length]
    labels = [f"{part.scores.bits_per_byte:.2f}\n{part.scores.documents} docs" for part in report.by_length]
    axes.bar_label(axes.bar(names, values, color=_OWN), labels=labels, fontsize=8)
    axes.axhline(report.overall.bits_per_byte, color=_LINE, linestyle="--", linewidth=1)
    axes.set(ylabel="bits per byte", ylim=(0, 1.25 * max([*values, report.overall.bits_per_byte])))
    axes.set_title("Bits per byte by document length (dashed: all documents)")
    axes.tick_params(axis="x", labelsize=8)


def _bits_per_byte(axes: Any, report: Report) -> None:
    entries = [("this model", report.overall.bits_per_byte), *((baseline.name, baseline.bits_per_byte) for baseline in report.baselines)]
    bars = axes.barh([name for name, _ in entries], [value for _, value in entries], color=[_OWN, *[_OTHER] * len(report.baselines)])
    axes.bar_label(bars, labels=[f" {value:.3f}" for _, value in entries])
    axes.invert_yaxis()
    axes.set(xlabel="bits per byte of the same test text (lower is better)", xlim=(0, 1.15 * max(value for _, value in entries)))
    axes.set_title(f"{report.overall.text_bytes:,} bytes of held-out text")
