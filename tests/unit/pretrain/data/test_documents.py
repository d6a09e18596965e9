"""Documents of a row and positions within them, against loops over the tokens."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.documents import mark_documents
from pretrain.model.positions import positions_in_documents

EOS = 2
ROWS = st.integers(1, 40).flatmap(
    lambda length: st.lists(
        st.lists(st.sampled_from([0, 1, EOS, 3, 70_000]), min_size=length, max_size=length), min_size=1, max_size=4
    )
)


def walk(row: list[int]) -> tuple[list[int], list[int]]:
    """Number of the document and position in it, token by token."""
    documents, positions, document, position = [], [], 0, 0
    for token in row:
        documents.append(document)
        positions.append(position)
        position += 1
        if token == EOS:
            document, position = document + 1, 0
    return documents, positions


@given(ROWS)
def test_documents_and_positions_are_those_of_a_walk_along_each_row(rows: list[list[int]]) -> None:
    documents_BT = mark_documents(torch.tensor(rows), EOS)
    assert documents_BT.dtype == torch.int32
    assert documents_BT.tolist() == [walk(row)[0] for row in rows]
    assert positions_in_documents(documents_BT).tolist() == [walk(row)[1] for row in rows]


@given(ROWS)
def test_cutting_a_row_at_its_documents_gives_the_documents_back(rows: list[list[int]]) -> None:
    inputs_BT = torch.tensor(rows)
    documents_BT = mark_documents(inputs_BT, EOS)
    for inputs_T, documents_T in zip(inputs_BT, documents_BT, strict=True):
        pieces = [inputs_T[documents_T == number].tolist() for number in range(int(documents_T[-1]) + 1)]
        assert [token for piece in pieces for token in piece] == inputs_T.tolist()
        assert all(piece.index(EOS) == len(piece) - 1 for piece in pieces[:-1])
        assert EOS not in pieces[-1][:-1]


def test_an_eos_belongs_to_the_document_that_it_ends() -> None:
    documents_BT = mark_documents(torch.tensor([[5, EOS, 1, EOS, EOS, 1], [1, 5, 5, 5, 5, EOS]]), EOS)
    assert documents_BT.tolist() == [[0, 0, 1, 1, 2, 3], [0, 0, 0, 0, 0, 0]]
    assert positions_in_documents(documents_BT).tolist() == [[0, 1, 0, 1, 0, 0], [0, 1, 2, 3, 4, 5]]


def test_positions_need_not_begin_with_document_zero() -> None:
    assert positions_in_documents(torch.tensor([[3, 3, 7, 7, 7], [0, 1, 2, 2, 9]])).tolist() == [
        [0, 1, 0, 1, 2],
        [0, 0, 0, 1, 0],
    ]
