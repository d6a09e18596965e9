import json
import sysconfig
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pretrain.cli.main import cli
from pretrain.errors import DataError

STDLIB = Path(sysconfig.get_paths()["stdlib"])


def run(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(cli, ["tokenizer", *map(str, arguments)], input=stdin, catch_exceptions=False)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python sources as files, and a language of another script in one jsonl file."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "code").mkdir()
    for file in sorted(STDLIB.glob("*.py"))[:12]:
        (folder / "code" / file.name).write_bytes(file.read_bytes())
    lines = [json.dumps({"body": f"{number} это был день, и это была ночь. " * 20}) for number in range(60)]
    (folder / "ru.jsonl").write_text("\n".join([*lines, "broken"]))
    return folder


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("trained")
    inputs = ("--input", f"code={corpus / 'code'}", f"ru={corpus / 'ru.jsonl'}", "--text-field", "body")
    options = (
        "--vocab-size",
        600,
        "--sample-bytes",
        "120kB",
        "--source-bytes",
        "ru=20kB",
        "--control-symbol",
        "<|a|>",
        "<|b|>",
    )
    return folder, run("train", *inputs, *options, "--output", folder)


def test_train_writes_a_model_and_its_report_and_prints_both(trained: tuple[Path, Result]) -> None:
    folder, result = trained
    assert result.exit_code == 0
    names = ["report.html", "report.json", "sample.digests", "tokenizer.model", "training.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    report, record = (json.loads((folder / name).read_text()) for name in ("report.json", "training.json"))
    assert [source["name"] for source in report["sources"]] == ["code", "ru"]
    assert record["sources"]["ru"]["budget"] == 20_000 and record["sources"]["code"]["budget"] == 100_000
    assert record["settings"]["control_symbols"][-2:] == ["<|a|>", "<|b|>"]
    assert report["left_out"] == record["skipped"] == {"broken JSON": 1}
    # The folder has no field `body` to read: its files are texts, and the sources are read alike.
    assert report["sources"][0]["documents"] > 0
    for source in report["sources"]:
        assert f"{source['bytes_per_token']:.2f}" in result.output
    for shown in (
        folder / "tokenizer.model",
        folder / "report.html",
        "memory",
        "time",
        "left out: broken JSON",
    ):
        assert str(shown) in result.output
    assert report["trained_on"]["seed"] == 0


def test_a_report_leaves_out_what_the_model_was_trained_on(
    trained: tuple[Path, Result], corpus: Path, tmp_path: Path
) -> None:
    folder, _ = trained
    model, same = (
        folder / "tokenizer.model",
        ("--input", f"ru={corpus / 'ru.jsonl'}", "--text-field", "body"),
    )
    with pytest.raises(DataError, match=r"report\.json: exists already"):
        run("report", model, *same)
    assert run("report", model, *same, "--output", tmp_path).exit_code == 0
    report = json.loads((tmp_path / "report.json").read_text())
    sampled = json.loads((folder / "training.json").read_text())["sources"]["ru"]["documents"]
    # The last document of a sample may be cut; it counts as seen.
    assert report["sources"][0]["documents"] == 60 - sampled
    assert f"Excluded {sampled} documents that the model was trained on" in report["notes"][0]
    assert (tmp_path / "report.html").exists()


def test_a_report_on_a_model_without_a_record_says_that_it_cannot_know(
    trained: tuple[Path, Result], corpus: Path, tmp_path: Path
) -> None:
    model = tmp_path / "other.model"
    model.write_bytes((trained[0] / "tokenizer.model").read_bytes())
    # A record of another model is none of this one.
    (tmp_path / "training.json").write_text('{"sha256": "0"}')
    (tmp_path / "sample.digests").write_bytes(b"")
    result = run("report", model, "--input", corpus / "code")
    report = json.loads((tmp_path / "report.json").read_text())
    assert result.exit_code == 0 and report["sources"][0]["documents"] == 12
    assert (
        "texts that the model was trained on are unknown" in report["notes"][0] and report["notes"][0] in result.output
    )


def test_digests_that_do_not_fit_the_record_are_refused(
    trained: tuple[Path, Result], corpus: Path, tmp_path: Path
) -> None:
    for path in trained[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "sample.digests").write_bytes(b"12345678")
    with pytest.raises(DataError, match=r"has 8 bytes, but training\.json counts"):
        run("report", tmp_path / "tokenizer.model", "--input", corpus / "code", "--overwrite")


def test_a_sample_that_takes_everything_trains_and_says_why_there_is_no_report(corpus: Path, tmp_path: Path) -> None:
    [file, *_] = sorted((corpus / "code").iterdir(), key=lambda path: -path.stat().st_size)
    result = run("train", "--input", file, "--vocab-size", 350, "--output", tmp_path)
    assert result.exit_code == 0 and "no report: the sample took every document" in result.output
    assert (tmp_path / "tokenizer.model").exists() and not (tmp_path / "report.json").exists()


def test_inspect_shows_facts_checks_and_pieces_with_their_ids(trained: tuple[Path, Result]) -> None:
    model = trained[0] / "tokenizer.model"
    result = run("inspect", model, "import os")
    assert result.exit_code == 0
    assert "character coverage" in result.output and "<|a|> <|b|>" in result.output
    assert "✔ exports to Hugging Face" in result.output and "✘" not in result.output
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    ids = processor.encode("import os")
    pieces = "  ".join(f"{processor.id_to_piece(token)} {token}" for token in ids)
    assert pieces in result.output
    assert f"{len(ids)} tokens, 9 bytes" in result.output
    assert pieces in run("inspect", model, "-", stdin="import os").output
    with pytest.raises(DataError, match="standard input is not UTF-8"):
        run("inspect", model, "-", stdin=b"\xff\xfe")


def test_options_that_are_wrong_are_refused_before_anything_is_read(corpus: Path, tmp_path: Path) -> None:
    base = ("train", "--input", corpus / "code", "--vocab-size", 400, "--output", tmp_path / "m")
    for options, message in (
        (("--sample-bytes", "many"), "is not a number of bytes"),
        (("--source-bytes", "ru=1MB"), "there is no source 'ru'"),
        (("--control-symbol", "a b"), "control symbol"),
    ):
        with pytest.raises(DataError, match=message):
            run(*base, *options)
    assert not (tmp_path / "m").exists()
    assert run("train", "--vocab-size", 400, "--output", "x").exit_code == 2
