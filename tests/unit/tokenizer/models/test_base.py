"""Every kind of tokenizer behind one face: ids and texts, special tokens that a text cannot make, files that are broken."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from pretrain.errors import DataError, UserError
from tests.support.json_tokenizers import KINDS, edit, write
from tests.support.tokenizers import (
    sentencepiece_model_fixture,  # noqa: F401
    source_chunks,
)
from tokenizer.models import base
from tokenizer.models.base import read_tokenizer
from tokenizer.models.hf_json import HFTokenizer
from tokenizer.models.open_tokenizer import load_tokenizer, tokenizer_from_files
from tokenizer.models.round_trip import describe_part, round_trip_losses
from tokenizer.models.stress_texts import stress_texts


@pytest.fixture(scope="session", name="kinds")
def kinds_fixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {name: make(folder / name) for name, make in KINDS.items()}


def opened(path: Path) -> HFTokenizer:
    found = load_tokenizer(path)
    assert isinstance(found, HFTokenizer)
    return found


def copy(path: Path, folder: Path) -> Path:
    for file in path.parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder / path.name


@pytest.mark.parametrize(
    ("name", "bos", "eos", "pad", "size"),
    [
        ("gpt2", -1, 900, -1, 901),
        ("llama3", 900, 901, -1, 906),
        ("qwen", -1, 900, 900, 905),
        ("llama2", 1, 2, -1, 700),
    ],
)
def test_special_ids_are_those_that_the_files_name(
    name: str, bos: int, eos: int, pad: int, size: int, kinds: dict[str, Path]
) -> None:
    found = load_tokenizer(kinds[name])
    assert (found.bos_id(), found.eos_id(), found.pad_id(), found.vocab_size()) == (bos, eos, pad, size)


def test_a_sentencepiece_model_is_a_tokenizer(sentencepiece_model: Path) -> None:
    found = load_tokenizer(sentencepiece_model)
    assert (found.bos_id(), found.eos_id(), found.pad_id(), found.vocab_size()) == (1, 2, 3, 1_009)
    assert found.decode(found.encode("a <s> b")) == "a <s> b"
    assert tokenizer_from_files(read_tokenizer(sentencepiece_model)).encode("def f") == found.encode("def f")


@pytest.mark.parametrize("name", ["gpt2", "llama3", "llama2"])
def test_texts_come_back_from_their_ids(name: str, kinds: dict[str, Path]) -> None:
    found = opened(kinds[name])
    for text in [*stress_texts(list(found.special_tokens.values())), *source_chunks(20_000)]:
        assert found.decode(found.encode(text)) in (text, text.replace("▁", " "))
    assert round_trip_losses(found) == []


@pytest.mark.parametrize("name", KINDS)
def test_ids_are_the_library_s_own_where_no_special_token_is_spelt(name: str, kinds: dict[str, Path]) -> None:
    found, plain = opened(kinds[name]), Tokenizer.from_file(str(kinds[name]))
    spellings = list(found.special_tokens.values())
    texts = [text for text in stress_texts(spellings) if not any(spelling in text for spelling in spellings)]
    assert len(texts) > 880
    for text in texts:
        assert found.encode(text) == plain.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", KINDS)
def test_special_tokens_that_a_text_spells_stay_text(name: str, kinds: dict[str, Path]) -> None:
    found = opened(kinds[name])
    generator = random.Random(1)
    spellings = list(found.special_tokens.values())
    for _ in range(300):
        text = "".join(generator.choice((*spellings, " ", "\n", "a", "the ", "<", "|>")) for _ in range(8))
        ids = found.encode(text)
        assert not set(ids) & set(found.special_tokens)
        assert found.decode(ids) == text


def test_decoding_leaves_special_tokens_out_as_sentencepiece_does(
    kinds: dict[str, Path], sentencepiece_model: Path
) -> None:
    for path in (*kinds.values(), sentencepiece_model):
        found = load_tokenizer(path)
        assert found.decode([*found.encode("one"), found.eos_id()]) == "one"


def test_words_that_are_one_token_and_not_special_stay_one(kinds: dict[str, Path]) -> None:
    found = opened(kinds["qwen"])
    (think,) = found.encode("<think>")
    assert found.encode("a<think>b") == [*found.encode("a"), think, *found.encode("b")]
    assert found.decode([think]) == "<think>" and think not in found.special_tokens


def test_a_normalizer_is_named_with_what_it_changes(kinds: dict[str, Path]) -> None:
    losses = round_trip_losses(opened(kinds["qwen"]))
    assert losses == [
        r"a letter and its accent as two characters is not restored: 'e\u0301' becomes '\xe9'",
        "its normalizer is NFC",
    ]
    sequence = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Prepend", "prepend": "\x1b["}]}
    assert describe_part(sequence) == r"NFC, Prepend(prepend='\x1b[')"
    assert describe_part(None) == ""


def test_truncation_and_padding_of_the_file_have_no_effect(kinds: dict[str, Path], tmp_path: Path) -> None:
    path = copy(kinds["gpt2"], tmp_path)
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(path))
    text = "def function(argument):\n    return argument\n"
    assert load_tokenizer(path).encode(text) == load_tokenizer(kinds["gpt2"]).encode(text)


@pytest.mark.parametrize(
    ("files", "eos"),
    [
        ({"tokenizer_config.json": {"eos_token": {"content": "<b>"}}, "special_tokens_map.json": {"eos_token": "<a>"}}, "<b>"),
        ({"tokenizer_config.json": {"eos_token": None}, "special_tokens_map.json": {"eos_token": "<a>"}}, "<a>"),
        ({"generation_config.json": {"eos_token_id": [5, 4]}, "config.json": {"eos_token_id": 4}}, 5),
        ({"generation_config.json": {}, "config.json": {"eos_token_id": 4}}, 4),
        ({"config.json": {"eos_token_id": -1}}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_the_end_of_a_document_is_the_first_that_is_named(
    files: dict[str, Any], eos: str | int | None, tmp_path: Path
) -> None:
    path = plain(tmp_path)
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
    if eos is None:
        with pytest.raises(DataError, match=r"names the token that ends a document\n.*hint: add \"eos_token\""):
            load_tokenizer(path)
        return
    found = opened(path)
    assert found.eos_id() == (eos if isinstance(eos, int) else found.backend.token_to_id(eos))
    kept = read_tokenizer(path)
    assert set(kept) == {"tokenizer.json"} | {
        name for name in files if isinstance(eos, str) or kept_for_ids(name, files)
    }
    assert tokenizer_from_files(kept).eos_id() == found.eos_id()


def kept_for_ids(name: str, files: dict[str, Any]) -> bool:
    """config.json is kept only where generation_config.json does not say it."""
    return name == "generation_config.json" or not files.get("generation_config.json")


def plain(folder: Path, **changes: Any) -> Path:
    """Single characters only, with two special tokens after the three that a training might make."""
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "<": 2, ">": 3}, [], unk_token=None))
    tokenizer.add_special_tokens([AddedToken("<a>", special=True), AddedToken("<b>", special=True)])
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return edit(path, **changes)


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("template", ["", "<|begin_of_text|>", "<|end_of_text|>"])
def test_a_document_begins_as_the_template_begins_a_text(
    template: str, stated: bool, kinds: dict[str, Path], tmp_path: Path
) -> None:
    path = copy(kinds["llama3"], tmp_path)
    edit(path, post_processor=template_of(path, *filter(None, [template])))
    edit(tmp_path / "tokenizer_config.json", add_bos_token=stated, bos_token=None)
    assert load_tokenizer(path).bos_id() == (900 if "begin" in template else -1)


def test_the_begin_is_that_of_the_template_whatever_the_vocabulary(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE({"x": 0, "y": 1}, []))  # no letter "a"
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    template = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
    roberta = processors.RobertaProcessing(("</s>", 3), ("<s>", 2))
    byte_level = processors.ByteLevel(trim_offsets=False)
    for processor in (template, roberta, processors.Sequence([byte_level, template])):
        tokenizer.post_processor = processor
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        assert load_tokenizer(tmp_path / "tokenizer.json").bos_id() == 2


def test_two_tokens_before_each_text_are_refused(kinds: dict[str, Path], tmp_path: Path) -> None:
    path = copy(kinds["llama3"], tmp_path)
    edit(path, post_processor=template_of(path, "<|begin_of_text|>", "<|reserved_special_token_0|>"))
    with pytest.raises(DataError, match=r"puts the tokens \[900, 902\] before each text"):
        load_tokenizer(path)


def template_of(path: Path, *tokens: str) -> Any:
    """A post-processor that puts these before a text; None for none."""
    known = Tokenizer.from_file(str(path))
    single = " ".join([*(f"{token}:0" for token in tokens), "$A:0"])
    known.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(token, known.token_to_id(token)) for token in tokens]
    )
    return json.loads(known.to_str())["post_processor"] if tokens else None


def test_a_named_token_is_special_even_where_the_file_says_otherwise(kinds: dict[str, Path], tmp_path: Path) -> None:
    path = copy(kinds["qwen"], tmp_path)
    edit(tmp_path / "tokenizer_config.json", eos_token="</think>")
    found = opened(path)
    assert found.eos_id() not in found.encode("a </think> b")
    assert found.decode([*found.encode("a"), found.eos_id()]) == "a"


def test_an_end_that_a_text_can_spell_is_refused(kinds: dict[str, Path], tmp_path: Path) -> None:
    path = copy(kinds["gpt2"], tmp_path)
    edit(tmp_path / "tokenizer_config.json", eos_token="self")
    with pytest.raises(DataError, match="a text that spells 'self' would become that token"):
        load_tokenizer(path)


def bad(kinds: dict[str, Path], folder: Path, damage: str) -> Path:
    path = copy(kinds["gpt2"], folder)
    tokenizer_json = json.loads(path.read_text())
    if damage == "random":
        tokenizer_json["model"]["dropout"] = 0.1
    elif damage == "no such end":
        edit(folder / "tokenizer_config.json", eos_token="<|nothing|>")
    elif damage == "end is a number":
        edit(folder / "tokenizer_config.json", eos_token=7)
    elif damage == "end is text":
        (folder / "tokenizer_config.json").unlink()
        edit(folder / "config.json", eos_token_id="x")
    elif damage == "end outside":
        (folder / "tokenizer_config.json").unlink()
        edit(folder / "config.json", eos_token_id=10**9)
    elif damage == "config no object":
        (folder / "tokenizer_config.json").write_text("[]")
    elif damage == "two of one id":
        tokenizer_json["model"]["vocab"]["zzz"] = 5
    elif damage == "added token elsewhere":
        tokenizer_json["added_tokens"][0]["id"] = 5_000
    elif damage == "merge of nothing":
        tokenizer_json["model"]["merges"].append(["zz", "yy"])
    elif damage == "huge id":
        tokenizer_json["model"]["vocab"]["zzz"] = 2**32 - 1
        tokenizer_json["added_tokens"][0]["id"] = 901
    elif damage == "broken pattern":
        tokenizer_json["pre_tokenizer"] = {
            "type": "Split",
            "pattern": {"Regex": "(("},
            "behavior": "Isolated",
            "invert": False,
        }
    elif damage == "unknown model":
        tokenizer_json["model"]["type"] = "Magic"
    elif damage == "empty":
        tokenizer_json["model"].update(vocab={}, merges=[])
        tokenizer_json["added_tokens"] = []
    path.write_text(json.dumps(tokenizer_json))
    return path


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("random", "dropout=0.1"),
        ("no such end", r"eos token is '<\|nothing\|>', which is not in its vocabulary"),
        ("end is a number", "tokenizer_config.json has eos_token=7, which is not a token"),
        ("end is text", "config.json has eos_token_id=x"),
        ("end outside", "eos token is 1000000000, which is not in"),
        ("config no object", "tokenizer_config.json: not a JSON object"),
        ("two of one id", "several tokens share one id"),
        ("added token elsewhere", "the id 5000, but the library loads it as 900"),
        ("merge of nothing", "not a tokenizer.json: .*out of vocabulary"),
        ("huge id", "has the id 4294967295; ids must be below"),
        ("broken pattern", "not a tokenizer.json"),
        ("unknown model", "not a tokenizer.json"),
        ("empty", "empty vocabulary"),
    ],
)
def test_a_file_that_cannot_be_right_is_refused_with_the_reason(
    damage: str, message: str, kinds: dict[str, Path], tmp_path: Path
) -> None:
    path = bad(kinds, tmp_path, damage)
    with pytest.raises(DataError, match=message) as caught:
        load_tokenizer(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"model": 3}'])
def test_a_file_that_is_no_tokenizer_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "x"}')
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_flipped_bytes_end_in_one_error_or_in_a_tokenizer(kinds: dict[str, Path], tmp_path: Path) -> None:
    """Whatever the Rust library makes of them, a panic included."""
    path = copy(kinds["llama2"], tmp_path)
    data, generator = path.read_bytes(), random.Random(2)
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(3):
            damaged[int(generator.random() ** 2 * len(damaged))] = generator.randrange(32, 127)
        path.write_bytes(damaged)
        try:
            load_tokenizer(path).encode("def f(x):\n    return x")
        except DataError:
            refused += 1
    assert refused > 20


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such tokenizer"):
        load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(DataError, match="is a folder"):
        load_tokenizer(tmp_path)


def test_a_file_without_an_end_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "LARGEST_BYTES", 1_000)
    (tmp_path / "tokenizer.model").write_bytes(bytes(1_001))
    with pytest.raises(DataError, match="larger than 1000 bytes"):
        load_tokenizer(tmp_path / "tokenizer.model")


def test_without_the_library_the_error_says_what_to_install(
    kinds: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"needs the package tokenizers\n.*pretrain-toolkit\[export\]") as caught:
        load_tokenizer(kinds["gpt2"])
    assert not isinstance(caught.value, DataError)


def test_the_library_is_not_loaded_for_a_sentencepiece_model(sentencepiece_model: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tokenizer.models.fast import load_encoder; "
        "import pretrain.training.startup.preflight; load_encoder(Path(sys.argv[1])); print('tokenizers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(sentencepiece_model)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_a_unigram_model_whose_end_is_a_piece_is_refused(tmp_path: Path) -> None:
    """`tokenizers` takes every entry of a unigram vocabulary out of a text, the special ones too."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((char, -3.0) for char in "</s>ab▁")]
    tokenizer = Tokenizer(models.Unigram([*pieces], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    path = write(tmp_path, tokenizer, {"eos_token": "</s>"}, "llama")
    with pytest.raises(DataError, match="'</s>' would become that token"):
        load_tokenizer(path)
