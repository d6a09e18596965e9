"""The tokenizer files of an exported directory, of runs with either kind of tokenizer, against transformers' AutoTokenizer.

transformers 5 is installed for the tests. That the same holds in 4.57, the oldest release that exports are made for, is
shown by hand, since both need an environment of their own:

    python -m venv /tmp/transformers-4
    /tmp/transformers-4/bin/pip install "transformers==4.57.*" sentencepiece protobuf torch accelerate omegaconf \\
        safetensors click rich fsspec pytest pytest-timeout
    OMP_NUM_THREADS=1 /tmp/transformers-4/bin/python -m pytest -o filterwarnings=default tests/parity/test_tokenizer_json.py \\
        tests/parity/test_tokenizer_files.py tests/parity/test_export_llama.py
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import AutoTokenizer

from pretrain.convert.files.tokenizer_files import (
    check_tokenizer,
    control_symbols,
    find_tokenizer,
    tokenizer_notes,
    write_tokenizer_files,
)
from pretrain.convert.verify.token_ids import prove_or_fix_tokenizer, prove_tokenizer
from pretrain.errors import DataError, ExportError
from tests.support.json_tokenizers import ENDOFTEXT, KINDS, edit
from tests.support.tokenizers import (
    sentencepiece_model_fixture,  # noqa: F401
    source_chunks,
    train_sentencepiece,
)
from tokenizer.models.open_tokenizer import load_tokenizer

COPIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
SINCE_5 = int(transformers.__version__.partition(".")[0]) >= 5


@pytest.fixture(scope="session", name="kinds")
def kinds_fixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    made = {name: make(folder / name) for name, make in KINDS.items()}
    (made["qwen"].parent / "chat_template.jinja").write_text("{{ messages[0].content }}<|im_end|>")
    return made


def exported(tokenizer: Path, folder: Path) -> Path:
    """What an export of a run with this tokenizer holds of it."""
    folder.mkdir(exist_ok=True)
    write_tokenizer_files(tokenizer, folder, max_tokens=512)
    source = tokenizer.with_name("config.json")
    config = json.loads(source.read_text()) if source.exists() else {"model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", ["gpt2", "llama3", "qwen"])
def test_transformers_reads_the_copied_files_as_we_do(name: str, kinds: dict[str, Path], tmp_path: Path) -> None:
    folder = exported(kinds[name], tmp_path / "out")
    proof = prove_tokenizer(folder, kinds[name])
    assert proof.strings > 1_000 and proof.spelling_control > 40 and proof.tokens > 60_000
    assert proof.reference == "tokenizers" and not proof.changed
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(kinds[name])
    for text in source_chunks(60_000):
        assert theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids == ours.encode(text)


@pytest.mark.parametrize("name", KINDS)
def test_files_are_copied_byte_for_byte(name: str, kinds: dict[str, Path], tmp_path: Path) -> None:
    folder = exported(kinds[name], tmp_path / "out")
    found = {file.name for file in folder.iterdir()} - {"config.json"}
    assert found == {file.name for file in kinds[name].parent.iterdir() if file.name in COPIED}
    for file in found:
        assert (folder / file).read_bytes() == kinds[name].with_name(file).read_bytes()
    # And from there once more.
    again = exported(find_tokenizer(folder), tmp_path / "again")
    for file in found:
        assert (again / file).read_bytes() == (folder / file).read_bytes()


def test_special_tokens_are_none_where_there_are_none(kinds: dict[str, Path], tmp_path: Path) -> None:
    special = write_tokenizer_files(kinds["qwen"], tmp_path, max_tokens=512)
    assert (special.unk, special.bos) == (None, None)
    assert special.eos == special.pad == (900, ENDOFTEXT)
    special = write_tokenizer_files(kinds["gpt2"], tmp_path, max_tokens=512)
    assert special.bos == special.eos == (900, ENDOFTEXT) and special.pad is None
    assert control_symbols(kinds["qwen"]) == [ENDOFTEXT, "<|im_start|>", "<|im_end|>"]


def test_a_class_that_makes_another_tokenizer_of_the_file_is_found_out_and_replaced(
    kinds: dict[str, Path], tmp_path: Path
) -> None:
    """GPT-2's class splits texts in GPT-2's way, whatever the file says: in transformers 5."""
    tokenizer = copied(kinds["llama3"], tmp_path / "run")
    edit(tokenizer.with_name("tokenizer_config.json"), tokenizer_class="GPT2Tokenizer")
    (tmp_path / "run" / "config.json").write_text('{"model_type": "gpt2"}')
    folder = exported(tokenizer, tmp_path / "out")
    if not SINCE_5:
        assert prove_or_fix_tokenizer(folder, tokenizer).changed == ""
        return
    before = (folder / "tokenizer_config.json").read_bytes()
    with pytest.raises(ExportError) as caught:
        prove_tokenizer(folder, tokenizer)
    message = str(caught.value)
    assert "differs from tokenizers in" in message and "and the run has [" in message
    assert "loads it as GPT2Tokenizer" in message and '"tokenizer_class": "PreTrainedTokenizerFast"' in message
    assert (folder / "tokenizer_config.json").read_bytes() == before
    proof = prove_or_fix_tokenizer(folder, tokenizer)
    assert proof.changed.startswith(
        "tokenizer_class: GPT2Tokenizer → PreTrainedTokenizerFast, because it gives other ids of"
    )
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config == {**json.loads(before), "tokenizer_class": "PreTrainedTokenizerFast"}
    assert prove_tokenizer(folder, tokenizer).strings == proof.strings


def test_llama_2_s_own_file_is_settled_in_either_generation(kinds: dict[str, Path], tmp_path: Path) -> None:
    folder = exported(kinds["llama2"], tmp_path / "out")
    assert bool(prove_or_fix_tokenizer(folder, kinds["llama2"]).changed) == SINCE_5
    assert (folder / "tokenizer.json").read_bytes() == kinds["llama2"].read_bytes()


def copied(path: Path, folder: Path) -> Path:
    shutil.copytree(path.parent, folder)
    return folder / path.name


@pytest.mark.parametrize("change", ["merges", "normalizer", "special", "eos", "template"])
def test_a_copy_that_is_not_the_run_s_tokenizer_does_not_pass(
    change: str, kinds: dict[str, Path], tmp_path: Path
) -> None:
    folder = exported(kinds["qwen"], tmp_path / "out")
    definition = json.loads((folder / "tokenizer.json").read_text())
    edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    if change == "merges":
        merges = definition["model"]["merges"]
        merges[3], merges[90] = merges[90], merges[3]
    elif change == "normalizer":
        definition["normalizer"] = {"type": "NFKC"}
    elif change == "special":
        definition["added_tokens"][1]["lstrip"] = True
        edit(folder / "tokenizer_config.json", added_tokens_decoder={})
    elif change == "eos":
        edit(folder / "tokenizer_config.json", eos_token="<|im_end|>")
    elif change == "template":
        definition["post_processor"] = json.loads(kinds["llama3"].read_text())["post_processor"]
        definition["post_processor"]["processors"][1]["special_tokens"]["<|begin_of_text|>"]["ids"] = [901]
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(ExportError, match="special ids are" if change == "eos" else "differs from tokenizers in"):
        prove_or_fix_tokenizer(folder, kinds["qwen"])


def test_a_file_that_transformers_cannot_load_is_one_error(kinds: dict[str, Path], tmp_path: Path) -> None:
    folder = exported(kinds["gpt2"], tmp_path / "out")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ExportError, match="cannot load the exported tokenizer"):
        prove_or_fix_tokenizer(folder, kinds["gpt2"])


def test_a_bare_definition_gets_the_configuration_that_it_lacks(kinds: dict[str, Path], tmp_path: Path) -> None:
    """Else transformers takes the class of the model's family."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(kinds["llama3"], run)
    (run / "config.json").write_text('{"model_type": "llama", "eos_token_id": 901}')
    folder = exported(run / "tokenizer.json", tmp_path / "out")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast" and config["model_max_length"] == 512
    assert config["eos_token"] == "<|end_of_text|>"
    assert prove_tokenizer(folder, run / "tokenizer.json").strings > 1_000


def test_rows_without_a_token_are_fine_and_tokens_without_a_row_are_not(kinds: dict[str, Path]) -> None:
    check_tokenizer(kinds["qwen"], 1_024)
    check_tokenizer(kinds["qwen"], 905)
    with pytest.raises(DataError, match="has 905 tokens, the model only 904 embedding rows"):
        check_tokenizer(kinds["qwen"], 904)


def test_our_own_exports_go_on_with_their_sentencepiece_model(sentencepiece_model: Path, tmp_path: Path) -> None:
    folder = exported(sentencepiece_model, tmp_path / "out")
    assert find_tokenizer(folder) == folder / "tokenizer.model"
    assert tokenizer_notes(folder / "tokenizer.model") == []
    # One that somebody has changed is not what the model gives.
    definition = json.loads((folder / "tokenizer.json").read_text())
    definition["model"]["merges"] = definition["model"]["merges"][:-1]
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    assert find_tokenizer(folder) == folder / "tokenizer.json"


def test_a_directory_s_tokenizer_is_its_json_file_else_its_model(
    kinds: dict[str, Path], sentencepiece_model: Path, tmp_path: Path
) -> None:
    assert (kinds["llama2"].parent / "tokenizer.model").exists()
    assert find_tokenizer(kinds["llama2"].parent) == kinds["llama2"]
    assert find_tokenizer(kinds["qwen"].parent) == kinds["qwen"]
    assert tokenizer_notes(kinds["qwen"])[-1] == "its normalizer is NFC"
    shutil.copy(sentencepiece_model, tmp_path / "tokenizer.model")
    assert find_tokenizer(tmp_path) == tmp_path / "tokenizer.model"


def test_a_directory_with_no_tokenizer_or_one_that_cannot_be_exact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has neither tokenizer.json nor tokenizer.model\n.*save_pretrained"):
        find_tokenizer(tmp_path)
    changes: dict[str, Any] = {"model_type": "unigram", "add_dummy_prefix": True, "user_defined_symbols": ["<tool>"]}
    train_sentencepiece(
        tmp_path / "tokenizer.model",
        600,
        source_chunks(50_000),
        normalization_rule_name="nmt_nfkc",
        **changes,
    )
    with pytest.raises(DataError) as caught:
        find_tokenizer(tmp_path)
    for reason in ("model_type is unigram", "add_dummy_prefix is on", "nmt_nfkc rewrites", "'<tool>'"):
        assert reason in str(caught.value)
