"""Peak memory of `pretrain export`, the proof included, and of `pretrain import` of what it wrote.

A model of the shape of configs/models/1b.yaml (random weights, 5 GB in fp32) is exported by a fresh process for each row.
Counted is that process's largest resident set, as the kernel reports it when the process ends (`ru_maxrss`): everything,
the interpreter and the libraries included. `libraries` is the same figure of a process that only imports what the command
imports, transformers' model class included. The goal is a peak below one output shard + 500 MB, of everything beyond the
libraries. MB are 10^6 bytes.

`PYTHONPATH=. python benchmarks/export_memory.py [--config configs/models/1b.yaml] [--place DIR]`
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

from pretrain.config import load_config
from pretrain.plan.counts import count_parameters

COMMAND = "from pretrain.convert import cli; cli.{name}_command()"
LIBRARIES = (
    "import pretrain.convert.export_hf, pretrain.convert.import_hf, sentencepiece, google.protobuf, transformers; "
    "transformers.AutoModelForCausalLM, transformers.AutoTokenizer, transformers.LlamaForCausalLM"
)
MAKE = "from benchmarks.export_memory import make_run; import sys; make_run(sys.argv[1], sys.argv[2])"
ROWS = (("fp32", 2_000_000_000), ("bf16", 2_000_000_000), ("bf16", 600_000_000))  # dtype, max_shard_bytes


def make_run(config_file: str, folder: str) -> None:
    """A save of the weights alone: as many files as a run on eight processes has, a tokenizer of 1,000 pieces."""
    import torch

    from pretrain.checkpoint import layout
    from pretrain.checkpoint.pieces import piece_key, write_pieces
    from pretrain.config.load import config_text
    from pretrain.convert.files.weight_files import expected_shapes, plan_shards
    from pretrain.run_folder import RunFolder
    from tests.support.tokenizers import train_sentencepiece

    config = load_config(config_file).config
    weights, shapes = RunFolder(Path(folder)).weights, expected_shapes(config.model)
    staging = layout.staging_folder(weights, 1, 1)
    staging.mkdir(parents=True)
    train_sentencepiece(Path(folder) / "tokenizer.model", vocab_size=1_000)
    files = {
        layout.STATE: layout.json_bytes({"step": 1, "samples": 1, "tokens": 1}),
        layout.CONFIG: config_text(config).encode(),
        "tokenizer.model": (Path(folder) / "tokenizer.model").read_bytes(),
    }
    entries = [layout.write_file(staging / name, data) for name, data in files.items()]
    sizes = {name: 4 * torch.Size(shape).numel() for name, shape in shapes.items()}
    for rank, names in enumerate(plan_shards(sizes, sum(sizes.values()) // 8)):
        pieces = {}
        for name in names:
            tensor = torch.empty(shapes[name]).normal_(0, 0.02) if len(shapes[name]) > 1 else torch.ones(shapes[name])
            pieces[piece_key("fp32", 0, name)] = tensor.view(-1)
        entries.append(write_pieces(staging / f"rank-{rank:05d}.safetensors", pieces))
    layout.commit(weights, 1, entries, 1)


def peak_of(program: str, *arguments: str) -> tuple[float, float]:
    """Megabytes and seconds of a fresh process."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{program} {' '.join(arguments)} ended with {status}")
    return usage.ru_maxrss * 1024 / 1e6, time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/models/1b.yaml")
    parser.add_argument("--place", type=Path, help="a folder with 16 GB to spare")
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(dir=options.place))
    try:
        report(options.config, place)
    finally:
        shutil.rmtree(place)


def report(config_file: str, place: Path) -> None:
    model = load_config(config_file).config.model
    print(
        f"{date.today()} · {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start · {platform.machine()}, Python "
        f"{platform.python_version()}, torch {version('torch')}, transformers {version('transformers')} · "
        f"{config_file}, {count_parameters(model) / 1e6:,.0f}M parameters\n"
    )
    subprocess.run([sys.executable, "-c", MAKE, config_file, str(place / "run")], check=True)
    libraries, _ = peak_of(LIBRARIES)
    print("| | shard, MB | peak, MB | of it libraries | beyond them | goal | seconds |\n|---|---|---|---|---|---|---|")
    for dtype, shard in ROWS:
        shutil.rmtree(place / "out", ignore_errors=True)
        arguments = [str(place / "run"), str(place / "out"), f"--dtype={dtype}", f"--max-shard-bytes={shard}"]
        peak, seconds = peak_of(COMMAND.format(name="export"), *arguments)
        # A tensor larger than the limit has a shard of its own.
        largest = max(file.stat().st_size for file in (place / "out").glob("*.safetensors")) / 1e6
        show(f"export, {dtype}", f"{largest:,.0f}", peak, libraries, largest + 500, seconds)
    peak, seconds = peak_of(COMMAND.format(name="import"), str(place / "out"), str(place / "imported"))
    show("import", "", peak, libraries, None, seconds)


def show(what: str, shard: str, peak: float, libraries: float, goal: float | None, seconds: float) -> None:
    beyond, limit = peak - libraries, "" if goal is None else f"{goal:,.0f}"
    print(
        f"| {what} | {shard} | {peak:,.0f} | {libraries:,.0f} | {beyond:,.0f} | {limit} | {seconds:.0f} |", flush=True
    )


if __name__ == "__main__":
    main()
