"""`pretrain doctor` finds what would go wrong with an installation."""

import sys
from pathlib import Path

import pytest

from pretrain.cli.doctor import check_installation, run_doctor


def test_this_installation_has_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_doctor() == 0
    shown = capsys.readouterr().out
    assert "torch 2." in shown and "the package `launch` has no conflict" in shown


def test_another_owner_of_our_packages_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if somebody had installed a distribution `rocket` with a top-level package `launch`."""
    info = tmp_path / "rocket-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rocket\nVersion: 1.0\n")
    (info / "top_level.txt").write_text("launch\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    faults = [finding.text for finding in check_installation() if finding.level == "fault"]
    assert len(faults) == 1
    assert "`launch` is also installed by rocket" in faults[0] and "pip uninstall rocket" in faults[0]
