"""Configuration of a run: schema.py declares it, load.py reads it, check.py checks the rules between values."""

from pretrain.config.check import check_config, check_world
from pretrain.config.load import LoadedConfig, load_config, save_config
from pretrain.config.schema import Config

__all__ = ["Config", "LoadedConfig", "check_config", "check_world", "load_config", "save_config"]
