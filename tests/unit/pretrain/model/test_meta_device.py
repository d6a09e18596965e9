import subprocess
import sys


def test_a_model_without_memory_imports_no_compiler() -> None:
    """Generation and exports build one on the meta device; torch's compiler would cost each of them 1.5 seconds."""
    program = (
        "import sys, torch\n"
        "from pretrain.config.schema import ModelConfig\n"
        "from pretrain.model.decoder import Decoder\n"
        "with torch.device('meta'):\n"
        "    Decoder(ModelConfig(64, 1, 16, 2, 2, 32, positions='learned'))\n"
        "assert not {'torch._dynamo', 'torch._inductor'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
