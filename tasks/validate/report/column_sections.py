"""From figures to the section about the other columns: nulls, classes, scales, correlations. Pure."""

from typing import Final

from tasks.validate.figures.columns import Columns
from tasks.validate.figures.corpus import CorpusFigures
from tasks.validate.report.column_findings import is_class
from tasks.validate.report.finding import Topic
from tasks.validate.report.sections import looked_at
from tasks.validate.report.view import Axis, Boxes, BoxRow, Cell, HeatMap, Listing, Places, Plot, Section, Table, bars_of, of_share

_MOST_CLASS_PLOTS: Final = 8
_LEAST_UNIT: Final = 1e-3


def columns_section(figures: CorpusFigures) -> Section:
    """Returns what the other columns of all sources hold."""
    columns = figures.whole.columns
    if not columns.columns:
        return Section(Topic.COLUMNS, "Other columns", "The accepted documents have no columns besides their text.", ())
    plots: list[Plot] = [_overview(columns)]
    if any(column.numbers is not None for column in columns.columns.values()):
        plots += [_boxes(columns)]
    if columns.pairs:
        plots.append(_heat_map(columns))
    plots += _classes(columns)
    text = "What else the records hold. It is kept in the accepted corpus, and not trained on."
    return Section(Topic.COLUMNS, "Other columns", f"{text} {looked_at(figures.sampling.columns)}", tuple(plots))


def _overview(columns: Columns) -> Listing:
    rows = []
    for name, column in columns.columns.items():
        nulls = columns.documents - column.present
        numbers = column.numbers
        of_numbers: tuple[str, ...] = ("",) * 5
        if numbers is not None:
            moments = numbers.moments
            of_numbers = (f"{moments.count:,}", *(f"{value:.6g}" for value in (moments.mean, moments.deviation, numbers.least, numbers.most)))
        different = "many" if column.values is None else f"{len(column.values):,}"
        rows.append((name, f"{column.present:,}", f"{nulls:,} ({of_share(nulls / columns.documents)})", different, *of_numbers))
    heads = ("column", "present", "null or missing", "different values", "numbers", "mean", "standard deviation", "least", "most")
    return Listing(f"Columns of {columns.documents:,} documents", Table(heads, tuple(rows)))


def _boxes(columns: Columns) -> Boxes:
    """Returns quantiles of all columns with numbers over one axis: what is of another scale is in another place."""
    numeric = {name: column.numbers for name, column in columns.columns.items() if column.numbers is not None}
    quantiles = {}
    for name, numbers in numeric.items():
        box = numbers.histogram.box()
        assert box is not None
        inner = (max(numbers.least, min(numbers.most, value)) for value in box)
        quantiles[name] = (numbers.least, *inner, numbers.most)
    sizes = [abs(value) for values in quantiles.values() for value in values if value]
    axis = Axis([value for values in quantiles.values() for value in values], unit=_unit(min(sizes, default=1.0)))
    rows = tuple(BoxRow(name, Places._make(axis.at(value) for value in values)) for name, values in quantiles.items())
    table = Table(
        ("column", "least", "5 %", "25 %", "median", "75 %", "95 %", "most"),
        tuple((name, *(f"{value:.6g}" for value in values)) for name, values in quantiles.items()),
    )
    return Boxes("Scales: quantiles (right to 3 %) of columns with numbers, on one axis", rows, axis.ticks(), table)


def _unit(smallest: float) -> float:
    """Returns the power of ten from which the axis is logarithmic."""
    unit = 1.0
    while unit > max(smallest, _LEAST_UNIT):
        unit /= 10
    return unit


def _heat_map(columns: Columns) -> HeatMap:
    names = sorted({name for pair in columns.pairs for name in (pair.first, pair.second)})
    found = {(pair.first, pair.second): pair.moments.correlation for pair in columns.pairs}
    rows = []
    for row in names:
        cells = []
        for column in names:
            value = 1.0 if row == column else found.get((min(row, column), max(row, column)))
            cells.append(Cell("–", 0.0, False) if value is None else Cell(f"{value:+.2f}", round(100 * abs(value)), value < 0))
        rows.append(tuple(cells))
    return HeatMap("Correlation of columns (Pearson's r), over documents that have both", tuple(names), tuple(rows))


def _classes(columns: Columns) -> list[Plot]:
    """Returns the shares of classes of the first columns that have any."""
    plots: list[Plot] = []
    for name, column in columns.columns.items():
        if is_class(column) and column.values is not None and len(plots) < _MOST_CLASS_PLOTS:
            ordered = sorted(column.values.items(), key=lambda item: (-item[1], item[0]))
            shown = [(value or "(empty)", float(count), f"{of_share(count / column.present)} · {count:,}") for value, count in ordered]
            plots.append(bars_of(f"Classes of {name}", shown, tone=len(plots)))
    return plots
