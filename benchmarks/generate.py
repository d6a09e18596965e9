"""New tokens a CPU second: ours with and without the cache, and `generate` of transformers on the same exported directory.

Greedy, without a stop token, from prompts of real text that are all of one length; interleaved in one process, in rounds, so
that a machine whose speed drifts slows all of them alike. CPU seconds: on one thread of an idle machine they are seconds. The
tokens are compared: all contenders must write the same.

    transformers     model.generate(do_sample=False), fp32, its default cache and attention (sdpa)
    ours             pretrain.generation, as `pretrain generate` calls it
    ours, no cache   the whole text is computed again for each token

`PYTHONPATH=. python benchmarks/generate.py [--tokens 128] [--rounds 5] [--batches 1 8] [--shapes small base] [--threads 1]`
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from pretrain.config.schema import ModelConfig
from pretrain.convert.export_hf import export_hf
from pretrain.convert.verify.transformers_library import quiet_transformers
from pretrain.generation.decode_loop import generate
from pretrain.generation.sampling import greedy
from pretrain.model.decoder import Decoder
from pretrain.model.logits_fn import decoder_logits
from tests.support.tokenizers import source_chunks, train_sentencepiece
from tests.support.weight_source import decoder_of, memory_source
from tokenizer.models.open_tokenizer import load_tokenizer

SHAPES = {
    "small": ModelConfig(4096, 4, 192, 6, 3, d_ff=512, max_seq_len=512, init_std=0.1),
    "base": ModelConfig(4096, 12, 768, 12, 12, d_ff=2048, max_seq_len=512, init_std=0.05),
}
PROMPT_TOKENS = 32

Ids = list[list[int]]
Contender = Callable[[Ids, int], Ids]


def ours(model: Decoder) -> Contender:
    def run(prompts: Ids, count: int) -> Ids:
        made: Ids = [[] for _ in prompts]

        def take(row: int, token: int) -> bool:
            made[row].append(token)
            return True

        generate(decoder_logits(model), prompts, greedy, take, max_new_tokens=count)
        return made

    return run


def without_cache(model: Decoder) -> Contender:
    @torch.no_grad()
    def run(prompts: Ids, count: int) -> Ids:
        tokens_BT = torch.tensor(prompts)
        for _ in range(count):
            tokens_BT = torch.cat([tokens_BT, model(tokens_BT)[:, -1:].argmax(-1)], dim=1)
        return tokens_BT[:, -count:].tolist()

    return run


def theirs(folder: Path) -> Contender:
    with quiet_transformers() as transformers:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def run(prompts: Ids, count: int) -> Ids:
        tokens_BT = torch.tensor(prompts)
        found = model.generate(
            tokens_BT,
            attention_mask=torch.ones_like(tokens_BT),
            do_sample=False,
            max_new_tokens=count,
            eos_token_id=None,
        )
        return found[:, -count:].tolist()

    return run


def measure(contenders: dict[str, Contender], prompts: Ids, count: int, rounds: int) -> dict[str, list[float]]:
    """New tokens a CPU second of each contender and round; one round more is made first, and left out."""
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        made = {}
        for name, run in contenders.items():
            started = time.process_time()
            made[name] = run(prompts, count)
            if number:
                speeds[name].append(len(prompts) * count / (time.process_time() - started))
        assert all(found == made["transformers"] for found in made.values()), "the contenders wrote different texts"
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    print(f"{date.today()}, {platform.machine()} CPU, {options.threads} thread(s), fp32, {versions}")
    print(f"{PROMPT_TOKENS} tokens of prompt, {options.tokens} new ones, median of {options.rounds} rounds\n")
    print("| model | batch | contender | new tokens a CPU second | of transformers (range over rounds) |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer = train_sentencepiece(Path(temporary) / "tokenizer.model", vocab_size=4096)
        codec = load_tokenizer(tokenizer)
        chunks = [codec.encode(chunk)[:PROMPT_TOKENS] for chunk in source_chunks()]
        for shape in options.shapes:
            source = memory_source(tokenizer, SHAPES[shape], seq_len=512)
            folder = export_hf(source, Path(temporary) / shape).folder
            model = decoder_of(source)
            contenders = {"transformers": theirs(folder), "ours": ours(model), "ours, no cache": without_cache(model)}
            millions = sum(tensor.numel() for tensor in source.tensors.values()) / 1e6
            for batch in options.batches:
                speeds = measure(contenders, chunks[:batch], options.tokens, options.rounds)
                for name, found in speeds.items():
                    ratios = [mine / other for mine, other in zip(found, speeds["transformers"], strict=True)]
                    print(
                        f"| {shape}, {millions:.0f}M | {batch} | {name} | {statistics.median(found):,.0f} | "
                        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
