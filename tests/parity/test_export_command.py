"""`pretrain export` and `pretrain import` as a person types them, and what they refuse."""

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from pretrain.checkpoint import layout
from pretrain.checkpoint.pieces import piece_key, write_pieces
from pretrain.cli.cmd_convert import export_command, import_command
from pretrain.config.load import config_text
from pretrain.config.schema import Config
from pretrain.convert import export_hf as hf
from pretrain.errors import CheckpointError, ExportError, UserError
from tests.support.checkpoints import flip_a_bit
from tests.support.tokenizers import sentencepiece_model_fixture  # noqa: F401
from tests.support.weight_source import memory_source

FIRST, SECOND = "blocks.0.attention.query.weight", "model.layers.0.self_attn.q_proj.weight"


def save_run(run: Path, tokenizer: Path | None, steps: tuple[int, ...], **state: Any) -> Config:
    """Checkpoints whose query weights are filled with the number of their step."""
    source = memory_source(tokenizer)
    for step in steps:
        tensors = source.tensors | {FIRST: source.tensors[FIRST].new_full((64, 64), step)}
        staging = layout.staging_folder(run / "checkpoints", step, 1)
        staging.mkdir(parents=True)
        files = {
            layout.STATE: layout.json_bytes({"step": step, "samples": step, "tokens": step, **state}),
            layout.CONFIG: config_text(source.config).encode(),
        }
        if tokenizer is not None:
            files["tokenizer.model"] = tokenizer.read_bytes()
        entries = [layout.write_file(staging / name, data) for name, data in files.items()]
        pieces = {piece_key("fp32", 0, name): tensor.reshape(-1) for name, tensor in tensors.items()}
        entries.append(write_pieces(staging / "rank-00000.safetensors", pieces))
        layout.commit(run / "checkpoints", step, entries, 1)
    return source.config


def call(command: click.Command, *arguments: str | Path) -> str:
    """What is printed; raises what the command raises."""
    result = CliRunner().invoke(command, list(map(str, arguments)), standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.output


def queries(folder: Path) -> float:
    weight = AutoModelForCausalLM.from_pretrained(folder).state_dict()[SECOND]
    assert weight.unique().numel() == 1
    return float(weight[0, 0])


def test_export_average_import_and_export_again(sentencepiece_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    save_run(run, sentencepiece_model, (2, 4, 9))
    assert "of step 9" in call(export_command, run, tmp_path / "newest")
    assert queries(tmp_path / "newest") == 9
    call(export_command, run, tmp_path / "fourth", "--step", "4", "--dtype", "bf16")
    assert queries(tmp_path / "fourth") == 4
    shown = call(export_command, run, tmp_path / "mean", "--average", "3", "--max-shard-bytes", "100000")
    assert "averaging the weights of steps 2, 4, 9" in shown
    assert queries(tmp_path / "mean") == 5
    assert len(list((tmp_path / "mean").glob("*.safetensors"))) > 1
    call(export_command, run, tmp_path / "mean", "--average", "2", "--step", "4", "--overwrite")
    assert queries(tmp_path / "mean") == 3

    shown = call(import_command, tmp_path / "mean", tmp_path / "back")
    assert f"--tokenizer {tmp_path / 'back' / 'tokenizer' / 'tokenizer.model'}" in shown
    assert f"pretrain launch local {tmp_path / 'back' / 'config.yaml'} data.train.own.path=" in shown
    assert "sequences of 64 tokens" in shown  # the power of two below the 96 of the training
    call(export_command, tmp_path / "back", tmp_path / "again")
    for name in ("model.safetensors", "config.json", "tokenizer_config.json"):  # the context of 96 too
        assert (tmp_path / "mean" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_what_cannot_be_exported_is_refused_with_the_reason(sentencepiece_model: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    save_run(run, sentencepiece_model, (2,))
    with pytest.raises(UserError, match="--dtype=q8_0 is not a type of --to=hf") as caught:
        call(export_command, run, out, "--dtype", "q8_0")
    assert "fp32, bf16" in str(caught.value)
    with pytest.raises(CheckpointError, match="--average 2: "):
        call(export_command, run, out, "--average", "2")
    with pytest.raises(CheckpointError, match="no step 3"):
        call(export_command, run, out, "--step", "3")
    with pytest.raises(UserError, match="does not exist"):
        call(export_command, tmp_path / "nothing", out)
    folder = run / "checkpoints" / "step-00000002"

    # Still being written: everything lies there but the rename, or the rename but not the manifest.
    staging = layout.staging_folder(run / "checkpoints", 2, 2)
    folder.rename(staging)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        call(export_command, run, out)
    staging.rename(folder)
    manifest = (folder / layout.MANIFEST).read_bytes()
    (folder / layout.MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        call(export_command, run, out)
    (folder / layout.MANIFEST).write_bytes(manifest)
    flip_a_bit(folder / "rank-00000.safetensors")
    with pytest.raises(CheckpointError, match=r"rank-00000\.safetensors is corrupt"):
        call(export_command, run, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_weights_that_are_not_finite_are_refused_by_name(sentencepiece_model: Path, tmp_path: Path) -> None:
    save_run(tmp_path / "run", sentencepiece_model, (2,))
    path = tmp_path / "run" / "checkpoints" / "step-00000002"
    source = memory_source(None)
    source.tensors["head.weight"][5, 7] = float("nan")
    pieces = {piece_key("fp32", 0, name): tensor.reshape(-1) for name, tensor in source.tensors.items()}
    entries = [entry for entry in layout.read_manifest(path) if not entry.name.endswith(".safetensors")]
    entries.append(write_pieces(path / "rank-00000.safetensors", pieces))
    manifest = {"format": layout.FORMAT, "step": 2, "files": [vars(entry) for entry in entries]}
    (path / layout.MANIFEST).write_bytes(layout.json_bytes(manifest))
    with pytest.raises(ExportError, match=r"head\.weight: 1 of 64576 elements are not finite"):
        call(export_command, tmp_path / "run", tmp_path / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["run"]


def test_what_has_come_to_the_output_meanwhile_is_not_deleted(
    sentencepiece_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_run(tmp_path / "run", sentencepiece_model, (2,))
    original = hf.prove_or_fix_tokenizer

    def proved_while_somebody_writes(*arguments: Any) -> Any:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes.txt").write_text("mine")
        return original(*arguments)

    monkeypatch.setattr(hf, "prove_or_fix_tokenizer", proved_while_somebody_writes)
    with pytest.raises(UserError, match="exists"):
        call(export_command, tmp_path / "run", tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_an_average_is_of_a_run(sentencepiece_model: Path, tmp_path: Path) -> None:
    save_run(tmp_path / "run", sentencepiece_model, (2,))
    with pytest.raises(UserError, match="is not a run and has a single step"):
        call(export_command, tmp_path / "run" / "checkpoints" / "step-00000002", tmp_path / "out", "--average", "1")


@pytest.mark.parametrize("part", ["", "checkpoints/step-00000003"])
def test_a_run_of_ours_is_not_imported(part: str, tmp_path: Path) -> None:
    save_run(tmp_path / "run", None, (3,))
    with pytest.raises(UserError, match=r"needs no import[\s\S]*run\.init_from="):
        call(import_command, tmp_path / "run" / part, tmp_path / "again")


def test_an_import_refuses_what_the_decoder_cannot_hold(sentencepiece_model: Path, tmp_path: Path) -> None:
    save_run(tmp_path / "run", sentencepiece_model, (2,))
    call(export_command, tmp_path / "run", tmp_path / "out")
    config = tmp_path / "out" / "config.json"
    config.write_text(config.read_text().replace('"model_type": "llama"', '"model_type": "mixtral"'))
    with pytest.raises(UserError, match="model_type='mixtral' cannot be imported"):
        call(import_command, tmp_path / "out", tmp_path / "back")
    with pytest.raises(UserError, match="exists"):
        call(import_command, tmp_path / "out", tmp_path / "run")
    assert not (tmp_path / "back").exists()
