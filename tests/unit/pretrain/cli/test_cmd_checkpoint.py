import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pretrain.checkpoint import layout
from pretrain.cli.cmd_checkpoint import find_damage
from pretrain.cli.main import cli
from pretrain.config import Config
from pretrain.config.load import save_config
from pretrain.config.schema import CheckpointConfig
from pretrain.errors import CheckpointError, UserError
from pretrain.run_folder import RunFolder
from tests.support.checkpoints import WEIGHTS, flip_a_bit, names, save

STATE = {"samples": 800, "world_size": 4, "zero_stage": 3}


@pytest.fixture(name="run")
def run_fixture(tmp_path: Path) -> RunFolder:
    """Three checkpoints, of which the middle one is the best, and weights of two steps."""
    run = RunFolder(tmp_path / "run")
    run.make()
    rules = CheckpointConfig(keep_last=1, keep_best=1, keep_every_steps=300)
    save_config(Config(checkpoint=rules), run.config)
    for step, loss in ((100, 3.0), (200, 2.0), (300, None)):
        save(run.checkpoints, step, validation_loss=loss, tokens=step * 1_000, **STATE)
    for step in (150, 200):
        save(run.weights, step, validation_loss=2.5, tokens=step * 1_000, **STATE)
    return run


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["checkpoint", *map(str, arguments)])


def listed(run: RunFolder) -> list[dict]:
    done = call("ls", run.path, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def line(output: str, step: int) -> str:
    (found,) = [line for line in output.splitlines() if line.split()[0] == str(step)]
    return found


def test_ls_says_what_is_there_and_why_it_is_kept(run: RunFolder) -> None:
    output = call("ls", run.path).output
    head, *rows = output.splitlines()
    assert head.split() == ["step", "age", "size", "tokens", "ranks", "stage", "valid", "loss", "kept"]
    assert [int(row.split()[0]) for row in rows] == [100, 150, 200, 200, 300]
    assert line(output, 100).split()[-6:] == ["MB", "100,000", "4", "3", "3.0000", "–"]
    assert line(output, 150).endswith("2.5000  weights only")
    assert rows[2].endswith("2.0000  best") and rows[3].endswith("weights only")
    assert line(output, 300).endswith("–  last, every")
    assert "corrupt" not in output


def test_ls_as_json_has_every_value(run: RunFolder) -> None:
    before = time.time() - 60
    found = listed(run)
    assert [(save["step"], save["weights_only"], save["kept"]) for save in found] == [
        (100, False, []),
        (150, True, []),
        (200, False, ["best"]),
        (200, True, []),
        (300, False, ["last", "every"]),
    ]
    first = found[0]
    assert first["state"] == {**STATE, "tokens": 100_000, "validation_loss": 3.0}
    assert first["folder"] == str(run.checkpoints / "step-00000100") and first["damage"] is None
    assert first["bytes"] == sum(path.stat().st_size for path in Path(first["folder"]).iterdir())
    assert before < first["saved_at"] < time.time() + 60


def test_ls_names_damage_and_counts_what_is_good(run: RunFolder) -> None:
    os.truncate(run.checkpoints / "step-00000300" / WEIGHTS, 2)
    (run.weights / "step-00000150" / layout.MANIFEST).unlink()
    output = call("ls", run.path).output
    assert line(output, 300).endswith("corrupt") and line(output, 150).endswith("corrupt")
    assert "corrupt: " in output and f"{WEIGHTS} has 2 bytes; the manifest says 7" in output
    found = {(save["step"], save["weights_only"]): save for save in listed(run)}
    assert found[300, False]["kept"] == [] and "2 bytes" in found[300, False]["damage"]
    assert found[200, False]["kept"] == ["last", "best"]


def test_ls_of_a_copy_without_a_configuration_gives_no_reasons(run: RunFolder) -> None:
    for text in (None, "nonsense: [", "checkpoint: {keep_last: 0}"):
        run.config.unlink(missing_ok=True)
        if text is not None:
            run.config.write_text(text)
        assert {tuple(save["kept"]) for save in listed(run)} == {()}


def test_ls_before_the_first_save(tmp_path: Path) -> None:
    assert call("ls", tmp_path).output == "no checkpoints yet\n"
    assert json.loads(call("ls", tmp_path, "--json").output) == []
    with pytest.raises(UserError, match="does not exist"):
        raise call("ls", tmp_path / "none").exception or AssertionError


def test_whole_checkpoints_verify(run: RunFolder) -> None:
    done = call("verify", run.path)
    assert (done.exit_code, done.output) == (0, f"{run.path}: 5 checkpoints intact\n")
    assert call("verify", run.path, "--step", 100).output == f"{run.path}: 1 checkpoint intact\n"
    assert call("verify", run.path, "--step", 200).output == f"{run.path}: 2 checkpoints intact\n"


@pytest.mark.parametrize("workers", [1, 3])
def test_verify_lists_every_damage_and_not_only_the_first(run: RunFolder, workers: int) -> None:
    flip_a_bit(run.checkpoints / "step-00000100" / WEIGHTS)
    (run.checkpoints / "step-00000100" / layout.CONFIG).unlink()
    flip_a_bit(run.weights / "step-00000200" / WEIGHTS)
    (run.checkpoints / "step-00000300" / layout.MANIFEST).write_text("{}")
    done = call("verify", run.path, "--workers", workers)
    assert done.exit_code == 1
    *problems, total = done.stdout.splitlines()
    assert total == f"{run.path}: 4 problems in 5 checkpoints"
    assert len(problems) == 4
    for part in ("step-00000100/rank-00000.safetensors is corrupt", "step-00000100/config.yaml is missing"):
        assert part in done.stdout
    assert "weights/step-00000200/rank-00000.safetensors is corrupt" in done.stdout
    assert "step-00000300: not a complete checkpoint" in done.stdout
    assert call("verify", run.path, "--step", 150).exit_code == 0
    assert call("verify", run.path, "--step", 300, "--workers", workers).exit_code == 1


def test_checkpoints_deleted_meanwhile_are_not_corrupt(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retention goes on while checkpoints are read."""
    folders = [run.checkpoints / layout.checkpoint_name(step) for step in (100, 200)]
    flip_a_bit(folders[1] / WEIGHTS)
    check, told = layout.check_file, list[tuple[int, int]]()

    def late(folder: Path, entry: layout.FileEntry) -> None:
        if folders[0].exists():
            layout.remove(folders[0])
        check(folder, entry)

    monkeypatch.setattr(layout, "check_file", late)
    problems = find_damage(folders, 1, lambda *progress: told.append(progress))
    assert len(problems) == 1 and "step-00000200" in problems[0]
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert {total for _, total in told} == {told[-1][0]}


def test_verify_of_what_is_not_there_is_the_users_error(run: RunFolder, tmp_path: Path) -> None:
    for arguments, message in (((run.path, "--step", 7), "no step 7"), ((tmp_path,), "holds no checkpoint")):
        error = call("verify", *arguments).exception
        assert isinstance(error, CheckpointError) and message in error.message


def test_rm_deletes_what_it_is_told_and_no_more(run: RunFolder) -> None:
    done = call("rm", run.path, 100, 300, 100)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [f"deleted {run.checkpoints}/step-00000{step}" for step in (100, 300)]
    assert names(run.checkpoints) == ["step-00000200"] and names(run.weights) == ["step-00000150", "step-00000200"]
    call("rm", run.path, 200, "--weights")
    assert names(run.checkpoints) == ["step-00000200"] and names(run.weights) == ["step-00000150"]
    call("rm", run.path, 150, "--weights")
    assert names(run.weights) == []


def test_rm_of_an_unknown_step_deletes_nothing(run: RunFolder) -> None:
    error = call("rm", run.path, 100, 150).exception
    assert isinstance(error, CheckpointError) and "no step 150" in error.message
    assert error.hint == "saved steps: 100, 200, 300"
    assert layout.list_steps(run.checkpoints) == [100, 200, 300]


def test_rm_leaves_something_to_resume_from(run: RunFolder) -> None:
    for path in ("step-00000100", "step-00000300"):
        flip_a_bit(run.checkpoints / path / WEIGHTS)
    for steps in ((200,), (100, 200), (100, 200, 300)):
        error = call("rm", run.path, *steps).exception
        assert isinstance(error, CheckpointError) and "leaves no checkpoint to resume from" in error.message
        assert error.hint is not None and "--force" in error.hint
    assert layout.list_steps(run.checkpoints) == [100, 200, 300]
    assert call("rm", run.path, 100, 300).exit_code == 0
    assert call("rm", run.path, 200, "--force").exit_code == 0
    assert layout.list_steps(run.checkpoints) == []


def test_rm_of_only_corrupt_checkpoints_needs_no_force(run: RunFolder) -> None:
    """As an error tells its reader to do: remove the corrupt ones to start again."""
    for step in (100, 200, 300):
        os.truncate(run.checkpoints / layout.checkpoint_name(step) / WEIGHTS, 1)
    assert call("rm", run.path, 100, 200, 300).exit_code == 0
    assert names(run.checkpoints) == []


def test_rm_waits_for_no_training_and_disturbs_none(run: RunFolder) -> None:
    with run.claim():
        for options in ((), ("--force",), ("--weights",)):
            error = call("rm", run.path, 200, *options).exception
            assert isinstance(error, UserError) and f"in use by process {os.getpid()}" in error.message
    assert layout.list_steps(run.checkpoints) == [100, 200, 300]
    assert call("rm", run.path, 100).exit_code == 0


@pytest.mark.parametrize("arguments", [["ls"], ["verify"], ["rm", "100"]], ids=lambda arguments: arguments[0])
def test_no_command_loads_torch(run: RunFolder, arguments: list[str]) -> None:
    program = (
        "import sys; from pretrain.cli.main import cli; cli(sys.argv[1:], standalone_mode=False); "
        "heavy = {'torch', 'numpy', 'fsspec', 'safetensors'} & set(sys.modules); assert not heavy, heavy"
    )
    command, *rest = arguments
    subprocess.run(
        [sys.executable, "-c", program, "checkpoint", command, str(run.path), *rest], check=True, capture_output=True
    )
