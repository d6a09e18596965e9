"""Names of activations in config.json, for the families whose feed-forward network has two matrices."""

from pretrain.convert.families.config_file import ConfigFile, shown

# Both sides of each pair run the same kernel of torch.
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
            f"{key}=gelu_new is the formula of gelu_tanh in single steps of torch; the decoder runs it as one, which can "
            "change the last bits of activations, and an export says gelu_pytorch_tanh"
        )
    return IMPORTED[name]
