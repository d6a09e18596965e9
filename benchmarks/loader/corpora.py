"""The same tokens on disk, in the format of each loader. Each function makes its folder once and returns it."""

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.support.shards import write_corpus

Ids = NDArray[np.uint16]

VOCAB_SIZE = 50_304
EOS = 2
MEAN_DOCUMENT = 700  # tokens
SAMPLES_PER_TAR = 8_192


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, filled by `make` unless it is there; a killed run leaves no half of one."""
    if not folder.exists():
        staging = folder.with_name(f".staging-{folder.name}")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        make(staging)
        staging.replace(folder)
    return folder


def plain(root: Path, tokens: int) -> Path:
    """`train.bin`, ids (u2) one after the other, and `ends.npy`, where documents end; lengths are log-normal."""

    def make(folder: Path) -> None:
        random = np.random.default_rng(0)
        ids = random.integers(3, VOCAB_SIZE, tokens, dtype=np.uint16)
        lengths = random.lognormal(np.log(MEAN_DOCUMENT) - 0.5, 1.0, 2 * tokens // MEAN_DOCUMENT).astype(np.int64) + 2
        ends = np.cumsum(lengths)
        ends = np.append(ends[ends < tokens], tokens)
        ids[ends - 1] = EOS
        ids.tofile(folder / "train.bin")
        np.save(folder / "ends.npy", ends)

    return made_once(root / "plain", make)


def read_plain(folder: Path) -> tuple[Ids, NDArray[np.int64]]:
    """All ids as a map, and the ends of documents."""
    return np.memmap(folder / "train.bin", np.uint16, "r"), np.load(folder / "ends.npy")


def token_shards(root: Path, ids: Ids) -> Path:
    """Ours: tars of blocks of 131,072 tokens, 256 MB each."""

    def make(folder: Path) -> None:
        write_corpus(folder, ids, vocab_size=VOCAB_SIZE, block_tokens=1 << 17, blocks_per_shard=1 << 10)

    return made_once(root / "shards", make)


def document_tars(root: Path, ids: Ids, ends: NDArray[np.int64]) -> Path:
    """WebDataset's usual way: a sample a document."""
    starts = [0, *ends[:-1].tolist()]
    documents = (ids[start:end] for start, end in zip(starts, ends.tolist(), strict=True))
    return made_once(root / "documents", lambda folder: write_tars(folder, documents))


def row_tars(root: Path, ids: Ids, length: int) -> Path:
    """Megatron-Energon: a sample a row, with the index that its `prepare` makes."""

    def make(folder: Path) -> None:
        from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

        write_tars(folder, rows_of(ids, length))
        tars = sorted(path.name for path in folder.glob("*.tar"))
        WebdatasetPreparator.prepare_dataset(folder, tars, split_parts_ratio=[("train", 1.0)], workers=1)
        (folder / ".nv-meta" / "dataset.yaml").write_text("__module__: megatron.energon\n__class__: CrudeWebdataset\n")

    return made_once(root / "energon", make)


def arrow(root: Path, ids: Ids, length: int) -> Path:
    """HF datasets: an Arrow table with a row of `length` ids (u2) a sequence."""

    def make(folder: Path) -> None:
        from datasets import Dataset, Features, List, Value

        features = Features({"tokens": List(Value("uint16"), length=length)})
        rows = [np.asarray(row) for row in rows_of(ids, length)]
        Dataset.from_dict({"tokens": rows}, features=features).save_to_disk(folder)

    return made_once(root / "arrow", make)


def mosaic(root: Path, ids: Ids, length: int) -> Path:
    """Mosaic Streaming: MDS shards of rows."""

    def make(folder: Path) -> None:
        from streaming import MDSWriter

        with MDSWriter(out=str(folder), columns={"tokens": f"ndarray:uint16:{length}"}, exist_ok=True) as writer:
            for row in rows_of(ids, length):
                writer.write({"tokens": np.asarray(row)})

    return made_once(root / "mosaic", make)


def rows_of(ids: Ids, length: int) -> Iterator[Ids]:
    """Rows of `length` ids; the last id of a row is the first of the next."""
    for start in range(0, len(ids) - length + 1, length - 1):
        yield ids[start : start + length]


def write_tars(folder: Path, samples: Iterator[Ids]) -> None:
    """Tars of up to 8,192 samples, `KEY.npy` each."""
    from webdataset.writer import TarWriter

    numbered = enumerate(samples)
    for tar, group in itertools.groupby(numbered, key=lambda pair: pair[0] // SAMPLES_PER_TAR):
        with TarWriter(str(folder / f"{tar:05d}.tar"), mtime=0) as writer:
            for number, sample in group:
                writer.write({"__key__": f"{number:08d}", "npy": np.asarray(sample)})
