"""`docs/results.md` is what `tools/results.py` makes of the figures beside it; its intervals are right."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from statistics import NormalDist
from types import ModuleType

import numpy as np
import pytest
from support.corpus import golden

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module(request.param)


@pytest.mark.parametrize("tool", ["results"], indirect=True)
def test_the_page_is_what_the_figures_say(tool: ModuleType) -> None:
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == tool.page(), "run tools/results.py --page"


@pytest.mark.parametrize("tool", ["paired_difference"], indirect=True)
@pytest.mark.parametrize(("won", "lost"), [(40, 25), (0, 0), (3, 90)])
def test_the_interval_of_a_paired_difference(tool: ModuleType, won: int, lost: int) -> None:
    images = 2000
    ours, theirs = np.ones(images, bool), np.ones(images, bool)
    theirs[:won] = False
    ours[won : won + lost] = False
    middle, low, high = tool.paired_difference(ours, theirs)
    assert middle == pytest.approx((won - lost) / images)
    # The textbook's interval of a difference of paired shares; the bootstrap's bounds lie on a grid of one image.
    spread = NormalDist().inv_cdf(0.975) * np.sqrt(won + lost - (won - lost) ** 2 / images) / images
    assert [low, high] == pytest.approx([middle - spread, middle + spread], abs=1.5 / images)
    assert (middle, low, high) == tool.paired_difference(ours, theirs)


@pytest.mark.parametrize("tool", ["classifiers"], indirect=True)
def test_the_calibration_images_are_those_of_the_golden_scales(tool: ModuleType) -> None:
    with np.load(golden("resnet8_calibration.npz")) as data:
        expected = data["x"]
    np.testing.assert_array_equal(np.concatenate(tool.resnet8().calibration), expected)


def test_the_figures_are_known_without_paddle() -> None:
    code = "import sys; import results; results.page(); sys.exit('paddle' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "tools")
