"""Document number of each position of a row.

A row of `seq_len` tokens is cut out of a stream of documents, each written as bos + ids + eos (without bos where
the tokenizer has none):

    inputs       … w  x  eos | bos a  b  c  eos | bos d  e          eos_id ends a document, and is its last token
    documents      0  0  0     1   1  1  1  1     2   2  2          mark_documents
    positions      0  1  2     0   1  2  3  4     0   1  2          pretrain/model/positions.py, made from documents

The first document of a row may have begun in an earlier row; its positions count from the start of this one. A batch carries
`documents` only.
"""

import torch
from torch import Tensor


def mark_documents(inputs_BT: Tensor, eos_id: int) -> Tensor:
    """The number of each position's document in its row, 0, 1, 2, …: (B, T) ids → (B, T) int32."""
    ends_BT = inputs_BT == eos_id
    return (ends_BT.cumsum(-1) - ends_BT.long()).to(torch.int32)
