"""The files of an analysis: texts and pictures, those of one call all written or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from qpass.analysis.result import AnalysisResult
from qpass.analysis.statistics import TensorStatistics
from qpass.analysis.target import TargetResult
from qpass.errors import FormatError, UsageError
from qpass.formats.atomic import write_together
from qpass.report.boxes import box_pdf
from qpass.report.breakdown import breakdown_txt, has_breakdown
from qpass.report.certainty import has_certainty, ranking_txt
from qpass.report.estimate import estimate_txt
from qpass.report.histograms import histogram_pdf
from qpass.report.ranking_chart import ranking_png
from qpass.report.target import target_csv, target_txt
from qpass.report.text import analysis_csv, analysis_txt, statistic_csv
from qpass.report.wording import digits_of

_ROLES: tuple[tuple[Literal["weight", "activation"], str], ...] = (("weight", "weight"), ("activation", "act"))


def write_analysis(result: AnalysisResult, save_dir: str | Path) -> list[Path]:
    """Write ``analysis.txt``, ``analysis.json``, ``analysis.csv`` and ``sensitivity.png``; give their paths.

    A result that says how sure its ranking is gets ``ranking.txt`` too, one whose layers were taken apart
    ``breakdown.txt``, one with an estimate ``estimate.txt``.

    Raises
    ------
    FormatError
        If the folder cannot be made or written.
    """
    files = {
        "analysis.txt": analysis_txt(result).encode(),
        "analysis.json": result.to_json().encode(),
        "analysis.csv": analysis_csv(result).encode(),
        "sensitivity.png": ranking_png(result),
    }
    if has_certainty(result):
        files["ranking.txt"] = ranking_txt(result).encode()
    if has_breakdown(result):
        files["breakdown.txt"] = breakdown_txt(result).encode()
    if result.estimate is not None:
        files["estimate.txt"] = estimate_txt(result, result.estimate).encode()
    return _write_all(save_dir, files)


def write_histograms(
    result: AnalysisResult, stats: Sequence[TensorStatistics], save_dir: str | Path, num_histogram_plots: int = 10
) -> list[Path]:
    """Write ``best_`` and ``worst_{weight,act}_hist_result.pdf``; give their paths.

    The best layers are the least sensitive ones, least sensitive first; the worst ones are the most sensitive, most
    sensitive first. A role for which there are no statistics gets no file.

    Parameters
    ----------
    result : AnalysisResult
    stats : sequence of TensorStatistics
        In any order; layers that are not in `result` are left out.
    save_dir : str or Path
    num_histogram_plots : int
        Layers in each file; 0 writes none, more than there are shows all.

    Raises
    ------
    UsageError
        If `num_histogram_plots` is negative.
    FormatError
        If the folder cannot be made or written.
    """
    if num_histogram_plots < 0:
        raise UsageError(f"num_histogram_plots is {num_histogram_plots}, expected a number >= 0")
    files: dict[str, bytes] = {}
    lines = _standing(result)
    for role, short in _ROLES:
        of_layer: dict[str, list[TensorStatistics]] = {}
        for one in stats:
            if one.role == role:
                of_layer.setdefault(one.layer, []).append(one)
        worst = [row.layer for row in result.rows if row.layer in of_layer]
        for kind, order in (("best", worst[::-1]), ("worst", worst)):
            chosen = [one for layer in order[:num_histogram_plots] for one in of_layer[layer]]
            if chosen:
                pages = [(one, f"{_about(one)} · {lines[one.layer]}") for one in chosen]
                files[f"{kind}_{short}_hist_result.pdf"] = histogram_pdf(pages, f"{kind} layers, {role} histograms")
    return _write_all(save_dir, files) if files else []


def write_statistics(stats: Sequence[TensorStatistics], save_dir: str | Path) -> list[Path]:
    """Write ``statistic.csv``, ``weight_box.pdf`` and ``act_box.pdf``; give their paths.

    A role for which there are no statistics gets no picture.

    Raises
    ------
    FormatError
        If the folder cannot be made or written.
    """
    files = {"statistic.csv": statistic_csv(stats).encode()}
    titles = {"weight": "Weights", "activation": "Input activations"}
    for role, short in _ROLES:
        chosen = [one for one in stats if one.role == role]
        if chosen:
            files[f"{short}_box.pdf"] = box_pdf(chosen, titles[role])
    return _write_all(save_dir, files)


def write_target(result: TargetResult, save_dir: str | Path) -> list[Path]:
    """Write ``target.txt``, ``target.json`` and ``target.csv``; give their paths.

    Raises
    ------
    FormatError
        If the folder cannot be made or written.
    """
    texts = {"txt": target_txt(result), "json": result.to_json(), "csv": target_csv(result)}
    return _write_all(save_dir, {f"target.{suffix}": text.encode() for suffix, text in texts.items()})


def _standing(result: AnalysisResult) -> dict[str, str]:
    digits = digits_of(result)
    return {
        row.layer: f"sensitivity {digits.text(row.sensitivity)} (rank {rank} of {len(result.rows)})"
        for rank, row in enumerate(result.rows, 1)
    }


def _about(one: TensorStatistics) -> str:
    what = "weight" if one.role == "weight" else f"input activation {one.name}"
    if one.error_rms == 0:
        return f"{what} · quantized without error"
    return f"{what} · SQNR {one.sqnr_db:.1f} dB · RMS error {one.error_rms:.3g}"


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file whole or not at all, in UTF-8; make its folder where needed.

    Raises
    ------
    FormatError
        If the folder cannot be made or written.
    """
    place = Path(path)
    return _write_all(place.parent, {place.name: text.encode()})[0]


def _write_all(save_dir: str | Path, files: Mapping[str, bytes]) -> list[Path]:
    folder = Path(save_dir)
    paths = {folder / name: [data] for name, data in files.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_together(paths)
    except OSError as e:
        raise FormatError(
            f"cannot write the results ({e.strerror})",
            where=str(folder),
            hint="give a folder on a disk with room that you may write to as save_dir",
        ) from e
    return list(paths)
