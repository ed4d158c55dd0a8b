"""Attention layers against the formula and against PyTorch's own, keys and values, biases, dropout masks."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from ddeq_fast.networks import attention
from ddeq_fast.networks.attention import KeysAndValues, Prepared, attend_to_prepared, prepare
from ddeq_fast.networks.encoders import AttentionEncoder, AttentionLayer
from ddeq_fast.networks.layers import FeedForward, PointwiseMLP, share_of_batch
from ddeq_fast.networks.padding import attention_bias, log_weights
from ddeq_fast.utils.differentiation import twice_differentiable
from problems import close, fails


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return AttentionLayer(12, 3, 20).double()


def attend(layer, q, x, bias=None):
    """norm(q + attention(q, x)) head by head; `bias` is added to the logits."""
    (wq, wk, wv), (bq, bk, bv) = layer.project_in.weight.chunk(3), layer.project_in.bias.chunk(3)
    queries, keys, values = q @ wq.T + bq, x @ wk.T + bk, x @ wv.T + bv
    size, heads = q.shape[-1] // layer.num_heads, []
    for h in range(layer.num_heads):
        part = slice(h * size, (h + 1) * size)
        logits = queries[..., part] @ keys[..., part].mT / size**0.5
        logits = logits if bias is None else logits + bias
        heads.append(logits.softmax(-1) @ values[..., part])
    return layer.norm(q + layer.project_out(torch.cat(heads, -1)))


@pytest.mark.parametrize("with_bias", [False, True])
def test_cross_attention_is_the_formula(layer, cloud, with_bias):
    q, x = cloud(2, 5, 12), cloud(2, 7, 12)
    bias = cloud(2, 1, 7) if with_bias else None
    expected = layer.ffn(attend(layer, q, x, bias))
    assert close(layer(q, layer.keys_and_values(x), None if bias is None else bias[:, None]), expected)


def test_cross_attention_equals_pytorch_multihead_attention(layer, cloud):
    q, x = cloud(2, 5, 12), cloud(2, 7, 12)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True).double()
    theirs.load_state_dict(
        {
            "in_proj_weight": layer.project_in.weight,
            "in_proj_bias": layer.project_in.bias,
            "out_proj.weight": layer.project_out.weight,
            "out_proj.bias": layer.project_out.bias,
        }
    )
    expected = layer.ffn(layer.norm(q + theirs(q, x, x, need_weights=False)[0]))
    assert close(layer(q, layer.keys_and_values(x), None), expected)


def test_self_attention_is_attention_to_itself(layer, cloud):
    q, bias = cloud(2, 5, 12), cloud(2, 1, 1, 5)
    assert close(layer(q, None, bias), layer(q, layer.keys_and_values(q), bias))


def test_keys_and_values_are_those_of_every_head(layer, cloud):
    x = cloud(2, 7, 12)
    keys, values = layer.keys_and_values(x)
    assert keys.shape == values.shape == (2, 3, 7, 4)
    _, wk, wv = layer.project_in.weight.chunk(3)
    assert close(keys[:, 1], (x @ wk.T)[..., 4:8]) and close(values[:, 2], (x @ wv.T)[..., 8:])


def test_encoder_chains_its_layers(cloud):
    encoder = AttentionEncoder(2, 8, 2, 12).double()
    q, x = cloud(2, 4, 8), cloud(2, 6, 8)
    first, second = encoder
    assert close(encoder(q), second(first(q, None, None), None, None))
    expected = second(first(q, first.keys_and_values(x), None), second.keys_and_values(x), None)
    assert close(encoder(q, encoder.keys_and_values(x)), expected)
    assert not close(encoder(q, [first.keys_and_values(x)] * 2), expected, 1e-3)


def test_an_encoder_without_layers_is_the_identity(cloud):
    q = cloud(2, 4, 8)
    assert torch.equal(AttentionEncoder(0, 8, 2, 12)(q), q)


def test_heads_must_divide_the_width():
    with fails(ValueError, "num_heads must divide dim, 12, got 5"):
        AttentionLayer(12, 5, 20)


def test_log_weights():
    weights = torch.tensor([[1.0, 2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    bias = log_weights(weights)
    assert bias.shape == (1, 1, 1, 3)
    assert bias.flatten().tolist() == [0.0, torch.tensor(2.0).double().log().item(), -torch.inf]
    bias[..., :2].sum().backward()
    assert weights.grad.tolist() == [[1.0, 0.5, 0.0]]


def test_bias_is_left_out_where_all_weights_are_one():
    weights = torch.ones(2, 3)
    assert attention_bias(weights) is None
    weights[1, 2] = 0
    assert torch.equal(attention_bias(weights), log_weights(weights))


def test_point_with_bias_minus_infinity_is_not_attended_to(layer, cloud):
    q, x = cloud(2, 5, 12), cloud(2, 7, 12)
    weights = torch.ones(2, 7, dtype=x.dtype)
    weights[:, 4:] = 0
    masked = layer(q, layer.keys_and_values(x), log_weights(weights))
    assert close(masked, layer(q, layer.keys_and_values(x[:, :4]), None))


def test_feed_forward_is_post_norm(cloud):
    block = FeedForward(6, 10).double()
    x = cloud(2, 4, 6)
    expected = block.norm(x + block.linear2(block.linear1(x).clamp_min(0)))
    assert close(block(x), expected)
    assert expected.mean(-1).abs().max() <= 1e-12


def test_feed_forward_multiplies_hidden_units_by_the_mask(cloud):
    block = FeedForward(6, 10, dropout=0.4).double()
    x, drop = cloud(2, 4, 6), block.draw(cloud(2, 4, 6))
    expected = block.norm(x + block.linear2(block.linear1(x).clamp_min(0) * drop))
    assert close(block(x, drop), expected)
    assert not close(block(x), expected, 1e-3)


def test_dropout_masks_keep_the_mean():
    block = FeedForward(6, 4000, dropout=0.25)
    torch.manual_seed(0)
    drop = block.draw(torch.zeros(5, 3, 6, dtype=torch.float64))
    assert drop.shape == (5, 1, 4000) and drop.dtype == torch.float64
    assert close(drop.unique(), torch.tensor([0.0, 4 / 3], dtype=torch.float64))
    # Standard deviation of the mean of 20,000 draws: 0.004.
    assert abs(drop.mean() - 1) < 0.02


def test_shares_of_a_batch_have_the_masks_of_the_whole():
    block, rows = FeedForward(6, 10, dropout=0.5), torch.tensor([1, 4])
    torch.manual_seed(0)
    whole, following = (block.draw(torch.zeros(5, 3, 6)) for _ in range(2))
    torch.manual_seed(0)
    with share_of_batch(5, rows):
        assert torch.equal(block.draw(torch.zeros(2, 3, 6)), whole[rows])
        with pytest.raises(ValueError, match="x must have the 2 clouds of this share of a batch, got 3"):
            block.draw(torch.zeros(3, 3, 6))
    torch.manual_seed(0)
    with ThreadPoolExecutor(1) as elsewhere, share_of_batch(5, rows):
        assert torch.equal(elsewhere.submit(block.draw, torch.zeros(5, 3, 6)).result(), whole)
    assert torch.equal(block.draw(torch.zeros(5, 3, 6)), following)


@pytest.mark.parametrize(("dropout", "training"), [(0.0, True), (0.5, False)])
def test_nothing_to_drop_gives_no_mask(dropout, training):
    assert FeedForward(6, 10, dropout).train(training).draw(torch.zeros(2, 3, 6)) is None


def test_pointwise_mlp(cloud):
    mlp = PointwiseMLP(3, 5, 4).double()
    x = cloud(2, 6, 3)
    assert close(mlp(x), mlp.linear2(mlp.linear1(x).clamp_min(0)))
    assert mlp(x).shape == (2, 6, 4)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scale", [1.0, 400.0])
@pytest.mark.parametrize("c", [3, attention.MOMENT_WIDTH, attention.MOMENT_WIDTH + 1])
def test_prepared_keys_and_values_give_attention_and_its_derivative_in_the_queries(
    cloud, c, weighted, scale, monkeypatch
):
    """Large logits leave the range of exponentials without a shift; a chunk holds three of the eight heads."""
    monkeypatch.setattr(attention, "CHUNK_ENTRIES", 3 * 5 * 7)
    q, source = (scale * cloud(2, 4, 5, c)).requires_grad_(), KeysAndValues(cloud(2, 4, 7, c), cloud(2, 4, 7, c))
    weights = torch.rand(2, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights[0, 2:4] = 0
    bias = log_weights(weights) if weighted else None
    ready, g = prepare(source, bias), cloud(2, 4, 5, c)
    found = attend_to_prepared(q, ready, bias)
    logits = q @ source.keys.mT / c**0.5
    expected = (logits if bias is None else logits + bias).softmax(-1) @ source.values
    assert isinstance(ready, Prepared) and close(found, expected)
    assert close(torch.autograd.grad(found, q, g)[0], torch.autograd.grad(expected, q, g)[0])
    with torch.no_grad():
        assert close(attend_to_prepared(q, ready, bias), expected.detach())
        assert close(attention.attend(q, *source, bias), expected.detach())


@pytest.mark.parametrize("entries", [1, 5 * 7, 3 * 5 * 7, 1 << 20])
def test_chunks_cover_all_heads(cloud, entries, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK_ENTRIES", entries)
    q, k, v = cloud(2, 4, 5, 3), cloud(2, 4, 7, 3), cloud(2, 4, 7, 3)
    with torch.no_grad():
        assert close(attention.attend(q, k, v, None), (q @ k.mT / 3**0.5).softmax(-1) @ v)
    q.requires_grad_()
    assert close(attention.attend(q, k, v, None), (q @ k.mT / 3**0.5).softmax(-1) @ v)


def test_prepared_keys_and_values_know_no_second_derivative(cloud):
    q, source = cloud(1, 2, 3, 2, grad=True), KeysAndValues(cloud(1, 2, 5, 2), cloud(1, 2, 5, 2))
    attended = attend_to_prepared(q, prepare(source, None), None)
    with fails(RuntimeError, "a context prepared for vector-Jacobian products has no second derivative"):
        torch.autograd.grad(attended.sum(), q, create_graph=True)


def test_keys_and_values_are_prepared_outside_the_graph(cloud):
    source = KeysAndValues(*(cloud(1, 2, 5, 3, grad=True) for _ in range(2)))
    ready = prepare(source, None)
    assert ready.factors.shape == ready.rows.shape == (1, 2, 4, 5)
    assert not any(part.requires_grad for part in (ready.factors, ready.rows, *ready.source))
    assert prepare(KeysAndValues(*(cloud(1, 2, 5, 5) for _ in range(2))), None).factors is None  # no moments of these


def test_keys_and_values_in_low_precision_stay_as_they_are(cloud):
    source = KeysAndValues(*(cloud(1, 2, 5, 3).bfloat16() for _ in range(2)))
    assert isinstance(prepare(source, None), KeysAndValues)


@pytest.mark.parametrize("entries", [1, 1 << 18])
def test_second_and_forward_derivatives_of_attention(cloud, entries, monkeypatch):
    """Also of clouds that are large enough for the fused kernels, which have neither."""
    monkeypatch.setattr(attention, "MATRIX_ENTRIES", entries)
    q, k, v = (cloud(1, 2, n, 3, grad=True) for n in (2, 4, 4))
    with twice_differentiable():
        assert torch.autograd.gradgradcheck(lambda *parts: attention.attend(*parts, None), (q, k, v))
    found = torch.func.jvp(lambda *parts: attention.attend(*parts, None), (q, k, v), (k[:, :, :2], v, k))[1]

    def moved(h):
        return attention.attend(q + h * k[:, :, :2], k + h * v, v + h * k, None)

    with torch.no_grad():
        assert torch.allclose(found, (moved(1e-6) - moved(-1e-6)) / 2e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: AttentionLayer(8, 0, 8), ValueError, "num_heads must be at least 1, got 0"),
        (lambda: AttentionLayer(8, 2, -1), ValueError, "dim_hidden must be at least 1, got -1"),
        (lambda: AttentionEncoder(-1, 8, 2, 8), ValueError, "layers must be at least 0, got -1"),
        (lambda: FeedForward(8, 8, 1.5), ValueError, "dropout must lie in [0, 1), got 1.5"),
        (lambda: PointwiseMLP(2, 0, 1), ValueError, "dim_hidden must be at least 1, got 0"),
    ],
)
def test_bad_sizes(make, error, message):
    with fails(error, message):
        make()
