"""Two distributions from one repository: the lab is not in the one that an image of a control plane installs."""

from __future__ import annotations

import tomllib
from pathlib import Path

import yaml

from clustermesh import __version__

_ROOT = Path(__file__).parents[2]


def test_the_lab_is_a_distribution_of_its_own_that_the_extra_brings() -> None:
    main, lab = (tomllib.loads((_ROOT / where / "pyproject.toml").read_text()) for where in ("", "lab"))
    assert main["project"]["version"] == lab["project"]["version"] == __version__
    assert main["project"]["optional-dependencies"]["lab"] == [f"{lab['project']['name']}=={__version__}"]
    assert lab["project"]["dependencies"] == [f"{main['project']['name']}=={__version__}"]
    assert "lab*" not in main["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = sorted(".".join(made.parent.relative_to(_ROOT).parts) for made in _ROOT.glob("lab/**/__init__.py"))
    assert sorted(lab["tool"]["setuptools"]["packages"]) == packages


def test_the_chart_is_of_the_same_version() -> None:
    chart = yaml.safe_load((_ROOT / "charts" / "clustermesh" / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
