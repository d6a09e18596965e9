"""Checks of run.init_from before a process group starts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pretrain.checkpoint import layout
from pretrain.config.load import config_text, load_config
from pretrain.config.schema import Config, DataConfig, ModelConfig, RunConfig
from pretrain.convert.families.choose import choose_family, config_json
from pretrain.convert.origin import imported_from
from pretrain.errors import CheckpointError, DataError
from pretrain.training.startup.init_weights import changed_rotation, find_initial_weights
from pretrain.training.startup.preflight import prepare
from tests.support.checkpoints import flip_a_bit, save
from tests.support.runs import make_run
from tests.support.weight_source import small_model


def run_with(path: Path | None, model: ModelConfig | None = None) -> Config:
    run = RunConfig(init_from=None if path is None else str(path))
    return Config(run=run, model=model or small_model(), data=DataConfig(seq_len=64))


def saved_run(folder: Path, model: ModelConfig | None = None) -> Path:
    save(folder / "weights", 7, config=config_text(run_with(None, model)).encode())
    return folder


def hf_directory(folder: Path, model: ModelConfig | None = None) -> Path:
    folder.mkdir()
    model = model or small_model()
    (folder / "config.json").write_text(json.dumps(config_json(choose_family(model), model, 128, "float32", {})))
    return folder


def test_a_run_a_checkpoint_and_a_directory_fit_the_model_that_they_hold(tmp_path: Path) -> None:
    run, theirs = saved_run(tmp_path / "run"), hf_directory(tmp_path / "theirs")
    step = run / "weights" / "step-00000007"
    for path in (run, step, theirs, None):
        folder = find_initial_weights(run_with(path), hashes=False)
        assert changed_rotation(run_with(path), folder) == []
    assert find_initial_weights(run_with(run), hashes=True) == find_initial_weights(run_with(step), hashes=True) == step
    assert find_initial_weights(run_with(None), hashes=True) is None
    with pytest.raises(DataError, match="holds no weights"):  # only one rank looks into its files
        find_initial_weights(run_with(theirs), hashes=True)


def test_a_checkpoint_with_a_config_json_of_its_tokenizer_is_no_directory_of_others(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run")
    step = run / "weights" / "step-00000007"
    (step / "config.json").write_text('{"eos_token_id": 0}')
    find_initial_weights(run_with(step), hashes=False)
    assert find_initial_weights(run_with(step), hashes=True) == step
    assert imported_from(run_with(step)) is None


def test_the_one_rank_that_decides_compares_the_models_too(tmp_path: Path) -> None:
    """With checkpoint.upload, whether there is a checkpoint is not known before."""
    with pytest.raises(CheckpointError, match=r"model\.d_ff: 160 → 96"):
        find_initial_weights(run_with(saved_run(tmp_path / "run"), small_model(d_ff=96)), hashes=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_ff": 96}, r"model\.d_ff: 160 → 96"),
        ({"head_dim": 32}, r"model\.head_dim: 16 → 32"),
        ({"tie_embeddings": True}, r"model\.tie_embeddings: False → True"),
        ({"norm_eps": 1e-6}, r"model\.norm_eps: 1e-05 → 1e-06"),
        ({"rope_fraction": 0.5}, r"model\.rope_fraction: 1\.0 → 0\.5"),
        ({"ffn": "gelu", "norm": "layernorm"}, r"(?s)model\.norm: .*model\.ffn: swiglu → gelu"),
    ],
    ids=str,
)
def test_another_model_is_refused_with_everything_that_would_change(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    for path in (saved_run(tmp_path / "run"), hf_directory(tmp_path / "theirs")):
        with pytest.raises(CheckpointError, match=message):
            find_initial_weights(run_with(path, small_model(**changes)), hashes=False)


def test_what_the_weights_do_not_depend_on_may_change(tmp_path: Path) -> None:
    path = saved_run(tmp_path / "run")
    longer = {"max_seq_len": 512, "rope_theta": 40_000.0, "rope_scaling": "linear", "rope_factor": 4.0}
    config = run_with(path, small_model(head_dim=16, attention="reference", init_std=0.1, **longer))
    assert changed_rotation(config, find_initial_weights(config, hashes=False)) == [
        "model.rope_theta: 10000.0 → 40000.0",
        "model.rope_scaling: none → linear",
        "model.rope_factor: 1.0 → 4.0",
    ]
    learned = small_model(positions="learned")
    path = saved_run(tmp_path / "learned", learned)
    with pytest.raises(CheckpointError, match=r"model\.max_seq_len: 128 → 512"):  # the rows of its table
        find_initial_weights(run_with(path, replace(learned, max_seq_len=512)), hashes=False)


def test_what_is_missing_damaged_or_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"run\.init_from=.*nothing does not exist"):
        find_initial_weights(run_with(tmp_path / "nothing"), hashes=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        find_initial_weights(run_with(tmp_path / "empty"), hashes=False)
    path = saved_run(tmp_path / "run")
    flip_a_bit(path / "weights" / "step-00000007" / "rank-00000.safetensors")
    find_initial_weights(run_with(path), hashes=False)  # compares sizes; rank 0 hashes
    with pytest.raises(CheckpointError, match="is damaged"):
        find_initial_weights(run_with(path), hashes=True)
    (path / "weights" / "step-00000007" / layout.MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        find_initial_weights(run_with(path), hashes=False)


def test_a_run_looks_at_it_before_it_starts(tmp_path: Path) -> None:
    path = make_run(tmp_path)
    start = f"run.init_from={saved_run(tmp_path / 'another')}"
    with pytest.raises(CheckpointError, match=r"model\.d_model: 64 → 48"):
        prepare(load_config(path, [start]).config, 1)
    fits = saved_run(tmp_path / "same", load_config(path).config.model)
    prepare(load_config(path, [f"run.init_from={fits}"]).config, 1)


def test_what_was_imported_is_known_by_name_and_not_by_a_path(tmp_path: Path) -> None:
    theirs = hf_directory(tmp_path / "theirs")
    assert imported_from(run_with(theirs)) == "theirs"
    values = json.loads((theirs / "config.json").read_text())
    for name, known in (("org/model-1B", "org/model-1B"), ("/home/someone/model", "theirs"), (7, "theirs")):
        (theirs / "config.json").write_text(json.dumps(values | {"_name_or_path": name}))
        assert imported_from(run_with(theirs)) == known
    run = tmp_path / "run"
    save(run / "weights", 0, config=config_text(run_with(None)).encode(), imported_from="org/model-1B")
    assert imported_from(run_with(run)) == imported_from(run_with(run / "weights" / "step-00000000")) == "org/model-1B"
    assert imported_from(run_with(saved_run(tmp_path / "own"))) is None
    assert imported_from(run_with(tmp_path / "gone")) is None
    assert imported_from(run_with(None)) is None
