"""Checks before a process group starts, without torch.

Every rank runs them, and `pretrain launch local` runs them before it starts any rank.
"""

from pathlib import Path

from pretrain.checkpoint.remote import check_upload
from pretrain.config import Config, check_world
from pretrain.errors import Together
from pretrain.generation.prompts import sample_prompts
from pretrain.run_folder import RunFolder
from pretrain.training.startup.opened_data import OpenedData, open_data
from pretrain.training.startup.resume import find_resume_point


def prepare(config: Config, world_size: int, *, is_main: bool = True) -> OpenedData:
    """Open the data; check it, the batch arithmetic, and the point to start from. Raises UserError.

    Only one process (`is_main`) checks that all shards exist: a thousand processes that list a folder overload its store.
    """
    together = Together()
    with together.check():
        check_world(config, world_size)
    with together.check():
        check_upload(config)
    with together.check():
        RunFolder(Path(config.run.dir)).check_free()
    with together.check():
        data = open_data(config)
    together.raise_all()
    sample_prompts(config, data.tokenizer)
    # Errors only. The decision is rank 0's, once the run is claimed: until then another process may save.
    find_resume_point(data, hashes=False)
    if is_main:
        for source in (*data.train, *data.valid):
            source.check_shards()
    return data
