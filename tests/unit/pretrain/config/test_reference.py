"""docs/reference/config.md against the schema."""

import re

from pretrain.config.build import known_keys
from pretrain.config.reference import reference
from tests.support.repository import ROOT


def test_the_reference_of_the_configuration_is_up_to_date() -> None:
    written = (ROOT / "docs" / "reference" / "config.md").read_text()
    assert written == reference() + "\n", "docs/reference/config.md is stale; hint: make reference"


def test_the_reference_names_every_key_once() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", reference(), flags=re.MULTILINE)
    expected = {
        key.replace("data.train.NAME", f"data.{part}.NAME") for key in known_keys() for part in ("train", "valid")
    }
    assert set(rows) == expected | {"data.train", "data.valid", "data.stages"}
    assert len(rows) == len(set(rows))
