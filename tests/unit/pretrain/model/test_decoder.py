import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pretrain.config.schema import ModelConfig
from pretrain.model.decoder import Decoder
from pretrain.model.init import init_weights
from pretrain.model.loss import IGNORE, plain_cross_entropy


def config(**changes: Any) -> ModelConfig:
    shape = {
        "vocab_size": 61,
        "n_layers": 3,
        "d_model": 24,
        "n_heads": 6,
        "n_kv_heads": 2,
        "d_ff": 40,
        "max_seq_len": 20,
    }
    return ModelConfig(**(shape | changes))


def model_of(c: ModelConfig, seed: int = 0, **options: Any) -> Decoder:
    model = Decoder(c, **options)
    init_weights(model, c, seed)
    return model


def batch(c: ModelConfig, length: int = 12, rows: int = 2) -> torch.Tensor:
    return torch.randint(c.vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(1))


VARIANTS = list(
    itertools.product(
        ("rope", "learned", "sinusoidal"), ("rmsnorm", "layernorm"), ("swiglu", "gelu", "relu"), (True, False)
    )
)


@pytest.mark.parametrize(("positions", "norm", "ffn", "tie"), VARIANTS)
def test_every_variant_gives_logits_and_a_gradient_to_every_parameter(
    positions: str, norm: str, ffn: str, tie: bool
) -> None:
    c = config(positions=positions, norm=norm, ffn=ffn, tie_embeddings=tie)
    model, tokens = model_of(c), batch(c)
    assert model(tokens[:, :-1]).shape == (2, 12, c.vocab_size)
    model(tokens[:, :-1], tokens[:, 1:]).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


BLOCKS: list[dict[str, Any]] = [
    {"qk_norm": "head"},
    {"qk_norm": "full", "norm_position": "post"},
    {"qk_norm": "head", "norm": "layernorm", "norm_bias": True},
    {"attention_bias": "qkv", "head_dim": 10},
    {"attention_bias": "all", "ffn_bias": True, "ffn": "gelu_tanh"},
    {"ffn_bias": True, "rope_fraction": 0.5},
    {"rope_scaling": "llama3", "rope_factor": 4.0, "rope_original_seq_len": 8},
    {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_seq_len": 8, "norm_position": "post"},
]


@pytest.mark.parametrize("changes", BLOCKS, ids=str)
def test_other_blocks_give_a_gradient_to_every_parameter_and_no_later_token_to_an_earlier(
    changes: dict[str, Any],
) -> None:
    c = config(**changes)
    model, tokens = model_of(c), batch(c)
    model(tokens[:, :-1], tokens[:, 1:]).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # A bias of all keys moves the scores of a query alike: softmax does not see it, but where positions are rotary.
        assert parameter.grad.abs().sum() > 0, name
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % c.vocab_size
    torch.testing.assert_close(model(tokens)[:, :7], model(changed)[:, :7], atol=1e-6, rtol=1e-6)


def test_each_block_is_another_computation() -> None:
    """An option without effect would go unnoticed."""
    found = [model_of(config(**changes))(batch(config())) for changes in ({}, *BLOCKS)]
    for one, other in itertools.combinations(found, 2):
        assert not torch.allclose(one, other, atol=1e-6)


def test_post_norm_normalizes_the_output_of_a_sub_layer() -> None:
    pre, post = model_of(config()).blocks[0], model_of(config(norm_position="post")).blocks[0]
    x = torch.randn(2, 5, 24)
    middle = x + pre.attention_norm(pre.attention(x, None))
    torch.testing.assert_close(post(x, None), middle + pre.feed_forward_norm(pre.feed_forward(middle)))
    middle = x + pre.attention(pre.attention_norm(x), None)
    torch.testing.assert_close(pre(x, None), middle + pre.feed_forward(pre.feed_forward_norm(middle)))


@pytest.mark.parametrize("kind", ["head", "full"])
def test_queries_and_keys_are_normalized_over_the_configured_channels(kind: str) -> None:
    attention = model_of(config(qk_norm=kind)).blocks[0].attention
    x = torch.randn(2, 5, 24)
    q_BHTC, k_BKTC, v_BKTC = attention.queries_keys_values(x, None)
    over = (-1,) if kind == "head" else (1, 3)
    for normalized in (q_BHTC, k_BKTC):
        torch.testing.assert_close(
            normalized.square().mean(over), torch.ones_like(normalized.mean(over)), atol=0.05, rtol=0
        )
    torch.testing.assert_close(v_BKTC, attention.value(x).unflatten(-1, (2, 4)).transpose(1, 2))


def test_biases_start_at_zero_and_change_the_result() -> None:
    c = config(attention_bias="all", ffn_bias=True, norm="layernorm", norm_bias=True)
    model, plain, tokens = model_of(c), model_of(config(norm="layernorm")), batch(c)
    assert torch.equal(model(tokens), plain(tokens))
    names = [name for name, parameter in model.named_parameters() if name.endswith(".bias")]
    assert len(names) == 3 * (4 + 3 + 2) + 1
    for name in names:
        with torch.no_grad():
            model.get_parameter(name).fill_(0.3)
            assert not torch.equal(model(tokens), plain(tokens)) or name.endswith("key.bias"), name
            model.get_parameter(name).fill_(0.0)


def test_the_loss_is_the_cross_entropy_of_the_logits() -> None:
    c = config()
    model, tokens = model_of(c), batch(c)
    targets = tokens[:, 1:].clone()
    targets[0, :3] = IGNORE
    sums = model(tokens[:, :-1], targets, chunk_tokens=5)
    torch.testing.assert_close(sums.total, plain_cross_entropy(model(tokens[:, :-1]), targets))


@pytest.mark.parametrize("positions", ["rope", "learned", "sinusoidal"])
@pytest.mark.parametrize("attention", ["sdpa", "reference"])
def test_a_later_token_changes_no_earlier_logit(positions: str, attention: str) -> None:
    c = config(positions=positions, attention=attention)
    model, tokens = model_of(c), batch(c)
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % c.vocab_size
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7], atol=1e-6, rtol=1e-6)
    assert (before[:, 7:] != after[:, 7:]).any(-1).all()


@pytest.mark.parametrize("positions", ["rope", "learned", "sinusoidal"])
def test_positions_matter(positions: str) -> None:
    c = config(positions=positions, init_std=0.3)
    model = model_of(c)
    first, second = model(torch.tensor([[3, 9, 9, 5]])), model(torch.tensor([[9, 3, 9, 5]]))
    assert (first[0, -1] - second[0, -1]).abs().max() > 1e-3


def test_tied_weights_are_one_parameter() -> None:
    tied, untied = model_of(config(tie_embeddings=True)), model_of(config())
    assert tied.head.weight is tied.embedding.tokens.weight
    assert "head.weight" not in dict(tied.named_parameters())
    assert "head.weight" in dict(untied.named_parameters())
    tokens = batch(config())
    tied(tokens[:, :-1], tokens[:, 1:]).total.backward()
    unused = torch.tensor([token not in tokens for token in range(61)])
    assert (tied.head.weight.grad[unused].abs().sum(-1) > 0).all()  # from the output
    untied(tokens[:, :-1], tokens[:, 1:]).total.backward()
    assert (untied.embedding.tokens.weight.grad[unused] == 0).all()


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputing_activations_gives_bitwise_the_same_gradients(every: int, dtype: torch.dtype) -> None:
    c, gradients = config(), []
    for option in (0, every):
        model = model_of(c, activation_checkpoint_every=option).to(dtype)
        tokens = batch(c)
        model(tokens[:, :-1], tokens[:, 1:]).total.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(plain, recomputed) for plain, recomputed in zip(*gradients, strict=True))


@pytest.mark.parametrize(("every", "runs"), [(0, 3), (1, 6), (2, 5), (3, 4)])
def test_every_nth_block_is_recomputed_in_training_only(every: int, runs: int) -> None:
    model = model_of(config(), activation_checkpoint_every=every)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    for block in model.blocks:
        block.attention_norm.register_forward_pre_hook(count)
    tokens = batch(config())
    model(tokens[:, :-1], tokens[:, 1:]).total.backward()
    assert calls == runs
    model.eval()
    model(tokens[:, :-1], tokens[:, 1:]).total.backward()
    assert calls == runs + 3


# --- documents --------------------------------------------------------------------------------------------------------

LENGTHS = [[5, 1, 6], [9, 3]]  # of the documents in each row


def documents(lengths: list[list[int]] = LENGTHS) -> torch.Tensor:
    """The number of each position's document, (B, T)."""
    rows = [[number for number, n in enumerate(row) for _ in range(n)] for row in lengths]
    return torch.tensor(rows, dtype=torch.int32)


def alone(tokens: torch.Tensor, lengths: list[list[int]] = LENGTHS) -> Iterator[tuple[tuple[int, slice], torch.Tensor]]:
    """Each document's place in the batch, and its inputs and targets as a batch of their own."""
    for row, parts in enumerate(lengths):
        ends = itertools.accumulate(parts)
        for end, length in zip(ends, parts, strict=True):
            yield (row, slice(end - length, end)), tokens[row : row + 1, end - length : end + 1]


POSITIONS_AND_ATTENTION = list(itertools.product(("rope", "learned", "sinusoidal"), ("sdpa", "reference")))


@pytest.mark.parametrize(("positions", "attention"), POSITIONS_AND_ATTENTION)
def test_each_document_of_a_row_is_computed_as_if_alone(positions: str, attention: str) -> None:
    c = config(positions=positions, attention=attention, init_std=0.2)
    model, tokens = model_of(c), batch(c)
    together = model(tokens[:, :-1], documents_BT=documents())
    mixed_up = model(tokens[:, :-1])
    for place, document in alone(tokens):
        expected = model(document[:, :-1])[0]
        assert (together[place] - expected).abs().max() <= 1e-5
        if place[1].start:
            assert (mixed_up[place] - expected).abs().max() > 1e-2


@pytest.mark.parametrize(("positions", "attention"), POSITIONS_AND_ATTENTION)
def test_gradients_of_a_row_of_documents_are_the_sum_of_those_of_each_alone(positions: str, attention: str) -> None:
    c = config(positions=positions, attention=attention, init_std=0.2)
    tokens, together, apart = batch(c), model_of(c), model_of(c)
    together(tokens[:, :-1], tokens[:, 1:], z_loss_weight=0.1, documents_BT=documents()).total.backward()
    for _, document in alone(tokens):
        apart(document[:, :-1], document[:, 1:], z_loss_weight=0.1).total.backward()
    for (name, found), expected in zip(together.named_parameters(), apart.parameters(), strict=True):
        largest = expected.grad.abs().max()
        assert largest > 1e-2, name
        assert (found.grad - expected.grad).abs().max() <= 1e-5 * max(1.0, largest), name


@pytest.mark.parametrize(("positions", "attention"), POSITIONS_AND_ATTENTION)
def test_tokens_of_one_document_change_no_bit_of_another(positions: str, attention: str) -> None:
    c = config(positions=positions, attention=attention)
    model, tokens = model_of(c), batch(c)[:, :-1]
    before = model(tokens, documents_BT=documents())
    for place, _ in alone(tokens):
        changed = tokens.clone()
        changed[place] = (changed[place] + 1) % c.vocab_size
        differs = (model(changed, documents_BT=documents()) != before).any(-1)
        assert differs[place].all()
        differs[place] = False
        assert not differs.any()


@pytest.mark.parametrize(("positions", "attention"), POSITIONS_AND_ATTENTION)
def test_rows_of_one_document_are_rows_without_documents(positions: str, attention: str) -> None:
    c = config(positions=positions, attention=attention)
    model, tokens = model_of(c), batch(c)[:, :-1]
    plain, masked = model(tokens), model(tokens, documents_BT=torch.zeros_like(tokens))
    torch.testing.assert_close(masked, plain, atol=1e-6, rtol=1e-6)


def test_documents_in_bf16_are_near_those_in_fp32() -> None:
    c = config()
    tokens, exact, rounded = batch(c)[:, :-1], model_of(c), model_of(c).to(torch.bfloat16)
    found = rounded(tokens, documents_BT=documents())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact(tokens, documents_BT=documents()), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputing_within_documents_gives_bitwise_the_same_gradients(dtype: torch.dtype) -> None:
    c, gradients = config(), []
    for option in (0, 1):
        model, tokens = model_of(c, activation_checkpoint_every=option).to(dtype), batch(c)
        model(tokens[:, :-1], tokens[:, 1:], documents_BT=documents()).total.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(plain, recomputed) for plain, recomputed in zip(*gradients, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_blocks_keep_one_and_the_same_mask_for_backward(dtype: torch.dtype) -> None:
    """A boolean mask would be converted, and kept, by every block: n_layers · B · T² elements."""
    c, kept = config(), set()
    model, tokens = model_of(c).to(dtype), batch(c)

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape[-2:] == (12, 12):
            kept.add((tensor.untyped_storage().data_ptr(), tensor.dtype))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        sums = model(tokens[:, :-1], tokens[:, 1:], documents_BT=documents())
    assert [of for _, of in kept] == [dtype]
    sums.total.backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's compiler reads it
def test_a_block_compiles_whole_with_documents_and_without() -> None:
    c, tokens = config(), batch(config())
    plain, compiled = model_of(c), model_of(c)
    for block in compiled.blocks:
        block.forward = torch.compile(block.forward, dynamic=False, fullgraph=True, backend="aot_eager")
    for given in (documents(), None):
        for model in (plain, compiled):
            model(tokens[:, :-1], tokens[:, 1:], documents_BT=given).total.backward()
        for (name, found), expected in zip(compiled.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad, msg=name)


# --- initial weights --------------------------------------------------------------------------------------------------


def test_weights_depend_only_on_seed_and_name() -> None:
    first = model_of(config(), seed=5)
    torch.manual_seed(99)
    torch.randn(1_000)
    second = model_of(config(), seed=5)
    other = model_of(config(), seed=6)
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.dim() == 1 or not torch.equal(a, c), name


def test_matrices_of_one_shape_begin_different() -> None:
    parameters = dict(model_of(config()).named_parameters())
    assert not torch.equal(parameters["blocks.0.attention.query.weight"], parameters["blocks.1.attention.query.weight"])
    assert not torch.equal(parameters["blocks.0.attention.key.weight"], parameters["blocks.0.attention.value.weight"])


def test_filling_in_another_order_or_only_some_gives_the_same_weights() -> None:
    whole, c = model_of(config()), config()
    alone = Decoder(c)
    for prefix, module in reversed(list(alone.named_children())):
        holder = torch.nn.Module()
        holder.add_module(prefix, module)
        init_weights(holder, c, 0)
    for (name, a), b in zip(whole.named_parameters(), alone.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_deeper_model_begins_with_the_same_matrices_but_for_the_scaled_ones() -> None:
    shallow, deep = dict(model_of(config()).named_parameters()), dict(model_of(config(n_layers=12)).named_parameters())
    for name, a in shallow.items():
        scaled = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
        torch.testing.assert_close(deep[name] * (2.0 if scaled else 1.0), a)


@pytest.mark.parametrize("ffn", ["swiglu", "relu"])
def test_standard_deviations_are_those_asked_for_and_less_on_the_residual_stream(ffn: str) -> None:
    c = config(d_model=192, d_ff=512, vocab_size=700, n_layers=8, init_std=0.05, ffn=ffn, positions="learned")
    scaled = 0
    for name, parameter in model_of(c).named_parameters():
        if parameter.dim() == 1:
            assert (parameter == 1).all(), name
            continue
        residual = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
        scaled += residual
        expected = 0.05 / math.sqrt(16) if residual else 0.05
        assert parameter.std().item() == pytest.approx(expected, rel=0.04), name
        assert abs(parameter.mean().item()) < 0.1 * expected, name
    assert scaled == 16


@pytest.mark.parametrize("tie", [True, False])
def test_the_first_loss_is_that_of_a_guess(tie: bool) -> None:
    c = config(vocab_size=5_000, d_model=48, tie_embeddings=tie)
    model, tokens = model_of(c), batch(c, 20, 16)
    loss = model(tokens[:, :-1], tokens[:, 1:]).cross_entropy.item() / (16 * 20)
    assert loss == pytest.approx(math.log(5_000), abs=0.1)


def test_a_weight_wrapper_sees_each_parameter_once_while_it_is_filled() -> None:
    c, seen = config(), []

    class Gather:
        def __init__(self, parameter: torch.nn.Parameter) -> None:
            self.parameter = parameter

        def __enter__(self) -> None:
            self.before = self.parameter.detach().clone()

        def __exit__(self, *_: object) -> None:
            seen.append((self.parameter, not torch.equal(self.before, self.parameter)))

    model = Decoder(c)
    init_weights(model, c, 0, Gather)
    assert [id(p) for p, _ in seen] == [id(p) for p in model.parameters()]
    assert all(changed for p, changed in seen if p.dim() == 2)
