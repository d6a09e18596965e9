"""A small run to train in tests: shards with something to learn in them, and a config."""

from pathlib import Path

import numpy as np
import yaml

from tests.support.shards import write_corpus

VOCAB = 128


def markov_tokens(count: int, seed: int) -> np.ndarray:
    """Ids in which each mostly follows from the one before: a loss that can fall."""
    generator = np.random.default_rng(seed)
    follower = np.random.default_rng(0).permutation(VOCAB)
    noise = generator.integers(0, VOCAB, count)
    surprised = generator.random(count) < 0.3
    tokens = np.empty(count, dtype=np.int64)
    current = 3
    for place in range(count):
        current = int(noise[place]) if surprised[place] else int(follower[current])
        tokens[place] = current
    return tokens


def make_run(folder: Path, **sections: dict) -> Path:
    """Write shards and a config into `folder`; `sections` change the config. Returns the config's path."""
    write_corpus(folder / "train", markov_tokens(20_001, 1), vocab_size=VOCAB, block_tokens=1024)
    write_corpus(folder / "valid", markov_tokens(1_501, 2), vocab_size=VOCAB, block_tokens=1024)
    config: dict = {
        "run": {"dir": str(folder / "run"), "seed": 7},
        "model": {
            "vocab_size": VOCAB,
            "n_layers": 2,
            "d_model": 48,
            "n_heads": 4,
            "n_kv_heads": 2,
            "d_ff": 96,
            "max_seq_len": 64,
            "tie_embeddings": True,
        },
        "data": {
            "train": {"a": {"path": str(folder / "train")}},
            "valid": {"b": {"path": str(folder / "valid")}},
            "seq_len": 32,
            "lanes": 8,
            "span": 4,
        },
        "batch": {"global_batch_size": 8, "micro_batch_size": 2},
        "optimizer": {"lr": 3e-3},
        "schedule": {"total_steps": 30, "warmup_steps": 5},
        # More threads than one only wait for each other in a model of this size.
        "engine": {"zero_stage": 2, "precision": "fp32", "device": "cpu", "threads_per_process": 1},
        "checkpoint": {"every_steps": 0},
        "eval": {"every_steps": 0},
        "log": {"tensorboard": False},
    }
    for name, values in sections.items():
        config[name] = {**config.get(name, {}), **values}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


# ZeRO-3 gathers small parameters only once unless told otherwise, which would hide a rank that runs another number of
# forwards than the others.
EAGER_ZERO3 = {
    "zero_optimization": {
        "stage3_max_live_parameters": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": 0,
    }
}
