"""What a process of a training sets up, and what it does not import on the way."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys, torch
from pretrain.config.schema import *
from pretrain.training.process import _configure_torch

compiled = torch.compile
config = Config(
    model=ModelConfig(64, 1, 16, 2, 2, 32, max_seq_len=16), data=DataConfig(seq_len=16),
    batch=BatchConfig(1, 1), schedule=ScheduleConfig(), engine=EngineConfig(compile={compile}),
)
_configure_torch(config, 1)
from pretrain.distributed.engine import _import_muon
import deepspeed
_import_muon()
assert torch.compile is compiled
print(torch.are_deterministic_algorithms_enabled(), "torch._inductor" in sys.modules)
"""


@pytest.mark.parametrize("compiles", [False, True])
def test_training_is_deterministic_and_brings_in_the_compiler_only_where_it_compiles(compiles: bool) -> None:
    program = PROGRAM.replace("{compile}", str(compiles))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["True", str(compiles)]
