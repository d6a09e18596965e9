"""Activation names in config.json, for families whose feed-forward network has two matrices."""

from pretrain.convert.families.config_file import ConfigFile, shown

# Both names of a pair run the same torch kernel.
EXPORTED = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}
IMPORTED = {stored: ours for ours, stored in EXPORTED.items()} | {"gelu_new": "gelu_tanh"}


def read_activation(file: ConfigFile, key: str, default: str) -> str:
    """Our name of the file's activation."""
    name = file.values.get(key) or default
    if not isinstance(name, str) or name not in IMPORTED:
        file.problems.append(f"{key}={shown(name)}: the decoder has {', '.join(IMPORTED)}")
        return "gelu"
    if name == "gelu_new":
        file.notes.append(
            f"{key}=gelu_new is the formula of gelu_tanh, in several torch operations instead of one kernel: the last "
            "bits of activations can differ; an export writes gelu_pytorch_tanh"
        )
    return IMPORTED[name]
