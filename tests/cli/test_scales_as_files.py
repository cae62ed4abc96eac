"""`qpass quantize` with scale tables in files: written, edited by hand, read again without data, refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.commands import Answer, qpass

from qpass import demo
from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.quant.encodings import find_sites
from qpass.quant.observer_options import ObserverOptions
from qpass.quant.scales import ScaleTable
from qpass.runtime.calibrate import calibrate

DIGITS = demo.float_prefix()


@pytest.fixture
def calib(tmp_path: Path) -> Path:
    np.savez(tmp_path / "calib.npz", x=np.concatenate(demo.calibration_data()[:1]))
    return tmp_path / "calib.npz"


def quantize(*arguments: object) -> Answer:
    return qpass("quantize", DIGITS, *arguments)


def thresholds(model: Model) -> dict[str, float]:
    return {site.value.name: float(np.max(site.threshold)) for site in find_sites(model)}


@pytest.mark.parametrize(
    ("words", "algo", "compat", "share"),
    [
        (("--algo", "KL"), "KL", None, 0.99999),
        (("--algo", "hist", "--hist-percent", "0.9"), "hist", None, 0.9),
        (("--algo", "mse", "--compat", "paddle"), "mse", "paddle", 0.99999),
    ],
)
def test_arguments_reach_the_observers(
    words: tuple[str, ...], algo: str, compat: str | None, share: float, calib: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scales.csv"
    answer = quantize("--data", calib, *words, "--scales-out", out, "-o", tmp_path / "m")
    assert answer.code == 0, answer.err
    options = ObserverOptions(hist_percent=share)
    expected = calibrate(load(DIGITS), np.load(calib)["x"], algo=algo, compat=compat, options=options)
    assert ScaleTable.load(out).to_json() == expected.to_json()


def test_a_scale_edited_in_a_spreadsheet_is_written(calib: Path, tmp_path: Path) -> None:
    assert quantize("--data", calib, "--scales-out", tmp_path / "s.csv", "-o", tmp_path / "a").code == 0
    lines = (tmp_path / "s.csv").read_text(encoding="utf-8").splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("activation,image,"))
    cells = lines[row].split(",")
    lines[row] = ",".join([*cells[:4], "0.75", "manual", *cells[6:]])
    (tmp_path / "s.csv").write_text("\r\n".join(lines), encoding="utf-8-sig")
    assert quantize("--scales", tmp_path / "s.csv", "-o", tmp_path / "b").code == 0
    before, after = thresholds(load(tmp_path / "a")), thresholds(load(tmp_path / "b"))
    assert after == {**before, "image": 0.75}
    assert before["image"] != 0.75


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("# params_digest,", "# params_digest,0", "made for other weights"),
        ("activation,image,", "activation,image.y,", "activation 'image.y', the model has not"),
        ("weight,conv2d_0.w_0,0,0,", "weight,conv2d_0.w_0,0,1,", "channel 1 of weight 'conv2d_0.w_0'"),
        ("# qpass_scales,2", "# qpass_scales,3", "version 3"),
    ],
)
def test_tables_that_do_not_fit(old: str, new: str, message: str, calib: Path, tmp_path: Path) -> None:
    calibrate(load(DIGITS), np.load(calib)["x"]).save(tmp_path / "s.csv")
    text = (tmp_path / "s.csv").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "s.csv").write_text(text.replace(old, new, 1), encoding="utf-8")
    answer = quantize("--scales", tmp_path / "s.csv", "-o", tmp_path / "m")
    assert answer.code == 1
    assert message in answer.err
    assert not list(tmp_path.glob("m.*"))
