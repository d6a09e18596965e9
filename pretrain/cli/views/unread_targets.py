"""Table rows about targets of a corpus that training at one sequence length does not read."""

from pretrain.errors import DataError
from pretrain.shards.manifest import PACKED, Manifest, unread_targets

DEFAULT_SEQ_LEN = 2048  # that of `data.seq_len`


def check_seq_len(seq_len: int, block_tokens: int) -> None:
    """Raise DataError if no run can read blocks of `block_tokens` at `seq_len`."""
    if block_tokens % seq_len:
        raise DataError(
            f"--seq-len {seq_len} does not divide the blocks of {block_tokens:,} tokens, so no run can read them",
            hint=f"--seq-len {DEFAULT_SEQ_LEN}, or another power of two",
        )


def unread_rows(manifest: Manifest, seq_len: int | None) -> dict[str, str]:
    """The row for `seq_len`, or for DEFAULT_SEQ_LEN; none for a packed corpus, of which all is read.

    Raises DataError if a `seq_len` that was given does not divide the blocks.
    """
    length = DEFAULT_SEQ_LEN if seq_len is None else seq_len
    if manifest.layout == PACKED or (seq_len is None and manifest.block_tokens % length):
        return {}
    check_seq_len(length, manifest.block_tokens)
    unread, shards = unread_targets(manifest, length), len(manifest.shards)
    where = f", at the end{'s' if shards > 1 else ''} of {shards:,} shard{'s' if shards > 1 else ''}" if unread else ""
    return {"unread": f"{unread / manifest.tokens:.2%} at seq_len {length:,}: {unread:,} targets{where}"}
