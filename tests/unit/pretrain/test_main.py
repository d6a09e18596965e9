import runpy

import pytest


def test_the_package_itself_is_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["pretrain", "--version"])
    runpy.run_module("pretrain", run_name="__main__")
    assert capsys.readouterr().out.startswith("pretrain")
