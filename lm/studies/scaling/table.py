"""What is known about a scaling law, as text for the console and as tables in GitHub's Markdown."""

import numpy as np

from lm.studies.scaling.analysis import Analysis
from lm.studies.scaling.bootstrap import Interval
from lm.studies.scaling.forecasts import Forecast
from lm.studies.scaling.isoflop import exponent
from lm.studies.scaling.study import COUNTS, MAIN_COUNT, Study


def console(analysis: Analysis) -> str:
    """The fit with its 95% intervals, its forecast of the most expensive runs, and the best sizes by FLOPs."""
    lines = []
    for name, (low, high) in analysis.intervals.items():
        value = getattr(analysis.fit.law, name)
        is_given = name == "E" and analysis.irreducible is not None
        note = "given" if is_given else f"95% interval {low:.6g} to {high:.6g}"
        lines.append(f"{name:9}  {value:<12.6g}  {note}")
    lines.append(f"{'objective':9}  {analysis.fit.objective:.8e}")
    low, high = analysis.optimum_exponent_interval
    lines.append(
        f"\nThe compute-optimal number of parameters grows as FLOPs^{analysis.optimum_exponent:.3f} "
        f"({low:.3f} to {high:.3f})."
    )
    if undetermined := analysis.fit.law.undetermined:
        lines.append(undetermined)
    forecast = analysis.held_out
    if isinstance(forecast, str):
        lines.append(f"No forecast of the most expensive runs from the others: {forecast}")
    else:
        lines.append(
            f"From the other runs, the {_plural(len(forecast.future), 'most expensive run')} "
            f"{'is' if len(forecast.future) == 1 else 'are'} predicted with a mean error of "
            f"{_percent(forecast.relative_errors.mean())} and a mean absolute error of "
            f"{100 * forecast.mean_absolute_relative_error:.2f}%."
        )
    return "\n".join(lines) + "\n\n" + _isoflops(analysis)


def markdown(study: Study) -> str:
    """All tables of a study."""
    parts = [_fits(study), _entropy(study), _held_out(study), _rolling(study), _isoflops(study.main)]
    if study.left_out:
        parts.append(f"Left out of the fits: {'; '.join(study.left_out)}.\n")
    else:
        parts.append("No run is left out of the fits.\n")
    return "\n".join(parts)


def _fits(study: Study) -> str:
    lines = [
        f"loss = E + A / N^alpha + B / D^beta, in bits per byte, fitted to {len(study.main.runs)} runs, with 95% "
        "intervals. The last column is the power of the FLOPs with which the compute-optimal N grows.\n",
        "| N counts | E | A | B | alpha | beta | objective | N ~ FLOPs^ |",
        "|---|---|---|---|---|---|---:|---|",
    ]
    notes = []
    for kind, analyses in (("fitted", study.free), ("given", study.known)):
        for count, analysis in analyses.items():
            ends = analysis.intervals
            law = analysis.fit.law
            cells = [
                COUNTS[count],
                f"{law.E:.4f} (given)" if analysis.irreducible is not None else _fitted_irreducible(analysis),
                *(_value(getattr(law, name), ends[name], ".4g") for name in ("A", "B")),
                *(_value(getattr(law, name), ends[name], ".3f") for name in ("alpha", "beta")),
                f"{analysis.fit.objective:.3e}",
                _value(analysis.optimum_exponent, analysis.optimum_exponent_interval, ".3f"),
            ]
            lines.append(f"| {' | '.join(cells)} |")
            if undetermined := law.undetermined:
                notes.append(f"\nN counts {COUNTS[count]}, E {kind}: {undetermined}")
    return "\n".join(lines + notes) + "\n"


def _entropy(study: Study) -> str:
    if study.entropy is None:
        return "The entropy of the text is not known, so there is nothing to compare E with.\n"
    lines = [
        f"The entropy of the text is {study.entropy:.4f} bits per byte; it is E if the context holds whole documents. "
        "The fits that do not know it find:\n",
        "| N counts | fitted E | difference | interval covers the entropy | difference / standard error |",
        "|---|---|---:|---|---:|",
    ]
    for count, analysis in study.free.items():
        E, (low, high) = analysis.fit.law.E, analysis.intervals["E"]
        covers = "yes" if low <= study.entropy <= high else "no"
        if analysis.needs_no_irreducible_loss:
            covers = "not determined"
        errors = analysis.standard_errors_from(study.entropy)
        lines.append(
            f"| {COUNTS[count]} | {_fitted_irreducible(analysis)} | {E - study.entropy:+.4f} | {covers} | "
            f"{'' if np.isnan(errors) else f'{errors:+.1f}'} |"
        )
    return "\n".join(lines) + "\n"


def _fitted_irreducible(analysis: Analysis) -> str:
    """E with its interval; where the fits of nearly all samples need no E, an interval would feign precision."""
    if analysis.needs_no_irreducible_loss:
        return "0, its lower bound"
    return _value(analysis.fit.law.E, analysis.intervals["E"], ".4f")


def _held_out(study: Study) -> str:
    lines = [
        f"The fifth of the cells with the most FLOPs, 6 N D with the {COUNTS[MAIN_COUNT]}, predicted from all others. "
        "Errors are predicted minus measured loss, as a share of the measured one.\n",
        "| N counts | E | fitted runs | predicted runs | mean error | mean absolute error | largest error |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for kind, analyses in (("fitted", study.free), ("given", study.known)):
        for count, analysis in analyses.items():
            forecast = analysis.held_out
            if isinstance(forecast, str):
                lines.append(f"| {COUNTS[count]} | {kind} | {forecast} | | | | |")
                continue
            errors = forecast.relative_errors
            lines.append(
                f"| {COUNTS[count]} | {kind} | {len(forecast.runs)} | {len(errors)} | {_percent(errors.mean())} | "
                f"{100 * forecast.mean_absolute_relative_error:.2f}% | {_percent(errors[np.argmax(np.abs(errors))])} |"
            )
    return "\n".join(lines) + "\n\n" + _held_out_runs(study)


def _held_out_runs(study: Study) -> str:
    """The predictions run by run, for the main count."""
    forecasts = {
        kind: analyses[MAIN_COUNT].held_out
        for kind, analyses in (("E fitted", study.free), ("E given", study.known))
        if analyses
    }
    found = {kind: forecast for kind, forecast in forecasts.items() if isinstance(forecast, Forecast)}
    if not found:
        return ""
    future = next(iter(found.values())).future
    lines = [
        f"Run by run, with the {COUNTS[MAIN_COUNT]}:\n",
        f"| N | D | measured |{''.join(f' {kind} | error |' for kind in found)}",
        f"|---:|---:|---:|{'---:|---:|' * len(found)}",
    ]
    for at in range(len(future)):
        cells = [
            f"{value} | {_percent(error)}"
            for value, error in (
                (f"{forecast.predicted[at]:.4f}", forecast.relative_errors[at]) for forecast in found.values()
            )
        ]
        lines.append(
            f"| {future.parameters[at]:,.0f} | {future.tokens[at]:,.0f} | {future.loss[at]:.4f} | {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def _rolling(study: Study) -> str:
    """The forecasts of each size from the smaller ones, for the main count."""
    rows = {
        kind: {forecast.future.parameters[0]: forecast for forecast in analyses[MAIN_COUNT].rolling()}
        for kind, analyses in (("fitted", study.free), ("given", study.known))
        if analyses
    }
    lines = [
        "Each size, predicted from all smaller ones:\n",
        f"| {COUNTS[MAIN_COUNT]} | E | fitted runs | predicted runs | mean error | mean absolute error |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {size:,.0f} | {kind} | {len(forecast.runs)} | {len(forecast.future)} | "
        f"{_percent(forecast.relative_errors.mean())} | {100 * forecast.mean_absolute_relative_error:.2f}% |"
        for kind, forecasts in rows.items()
        for size, forecast in forecasts.items()
    ]
    without = [f"with E {kind}" for kind, forecasts in rows.items() if not forecasts]
    if len(without) == len(rows):
        return "There are too few sizes to predict one from the smaller ones.\n"
    note = f"\nThere are too few sizes to predict one from the smaller ones {without[0]}.\n" if without else ""
    return "\n".join(lines) + "\n" + note


def _isoflops(analysis: Analysis) -> str:
    """The best size at each level of FLOPs, and how it grows."""
    lines = [
        "Runs with about the same FLOPs, 6 N D; the best size is the minimum of a parabola in log N:\n",
        "| FLOPs | runs | best size | law |",
        "|---:|---:|---|---:|",
    ]
    for isoflop in analysis.isoflops:
        N, _ = analysis.fit.law.compute_optimal(isoflop.flops)
        lines.append(f"| {isoflop.flops:.3g} | {len(isoflop.loss)} | {isoflop.verdict} | {N:,.0f} |")
    power = exponent(analysis.isoflops)
    if power is None:
        found = sum(isoflop.optimum is not None for isoflop in analysis.isoflops)
        lines.append(f"\nNo exponent: it needs two levels of FLOPs with a minimum, and there {_are(found)}.")
    else:
        lines.append(
            f"\nThe best size grows as FLOPs^{power:.3f}; by the law, as FLOPs^{analysis.optimum_exponent:.3f}."
        )
    return "\n".join(lines) + "\n"


def _are(count: int) -> str:
    return "is one" if count == 1 else "are none"


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{count} {noun}s"


def _value(value: float, ends: Interval, style: str) -> str:
    return f"{value:{style}} ({ends[0]:{style}} to {ends[1]:{style}})"


def _percent(share: float) -> str:
    return f"{100 * share:+.2f}%"
