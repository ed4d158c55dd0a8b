"""The networks that DDEQ is compared with: shapes, symmetries, learning."""

import pytest
import torch

from ddeq_fast.data.dataset import Dataset, generator
from ddeq_fast.models import missing_points
from problems import rings_and_discs

pytest.importorskip("bench", reason="no benchmarks beside the tests")

from bench.baselines.dgcnn import DGCNN, EdgeConv
from bench.baselines.grouping import farthest, neighbours, padded, picked
from bench.baselines.pcn import PCN
from bench.baselines.point_mlp import PointMLP, Stage
from bench.baselines.point_transformer import PointTransformer
from bench.baselines.pointnet import PointNet
from bench.baselines.pointr import PoinTr
from ddeq_fast.training import Trainer, read_metrics
from ddeq_fast.training.config import Config

for module in ("safetensors", "tqdm"):
    pytest.importorskip(module)

MODELS = {
    "pointnet": lambda: PointNet(2, 2, 4),
    "pointnet-described": lambda: PointNet(2, 2, 4, bandwidths=(0.5, 1.0)),
    "transformer": lambda: PointTransformer(2, 2, 16, k=4),
    "dgcnn": lambda: DGCNN(2, 2, 8, k=4),
    "pointmlp": lambda: PointMLP(2, 2, 8, k=4),
    "pcn": lambda: PCN(2, 24, 1.5, keep=False, width=8),
    "pcn-keep": lambda: PCN(2, 24, 1.5, width=8),
    "pointr": lambda: PoinTr(2, 24, 1.5, 8, ratio=4, k=4),
}
CLASSIFIERS, COMPLETERS = (
    ("pointnet", "pointnet-described", "transformer", "dgcnn", "pointmlp"),
    ("pcn", "pcn-keep", "pointr"),
)


@pytest.fixture(params=list(MODELS))
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


def answer(model, x, weights=None):
    """What a model says of clouds that does not depend on the order of their points: logits or new points."""
    out = model(x, weights)
    return out.logits if hasattr(out, "logits") else out.points[~out.observed & (out.weights > 0)]


@pytest.fixture(scope="module")
def rings():
    return Dataset("rings", 2, 2, *(rings_and_discs(count, seed, (12, 21), 0.7) for seed, count in enumerate((64, 32))))


def test_the_order_of_points_has_no_influence(model, cloud):
    x = cloud(3, 17, 2, dtype=torch.float32)
    shuffled = x[:, torch.randperm(17, generator=generator(1))]
    torch.testing.assert_close(answer(model, shuffled), answer(model, x))


@pytest.fixture
def clouds(cloud):
    """Clouds of 2, 17 and 9 points with their weights, and the same with other padding and more of it."""
    x = cloud(3, 17, 2, dtype=torch.float32)
    weights = (torch.arange(17) < torch.tensor((2, 17, 9))[:, None]).float()
    far = torch.where(weights[..., None] > 0, x, 100.0)
    return (x, weights), (torch.cat((far, far), 1), torch.cat((weights, torch.zeros_like(weights)), 1))


def test_clouds_are_answered_as_if_alone(model, clouds):
    for x, weights in clouds:
        alone = [answer(model, cloud[real > 0][None]) for cloud, real in zip(x, weights, strict=True)]
        torch.testing.assert_close(answer(model, x, weights), torch.cat(alone))


def test_padding_has_no_influence_on_training(model, clouds):
    trained = []
    for x, weights in clouds:
        torch.manual_seed(0)  # of dropout
        trained.append(answer(model.train(), x, weights))
    torch.testing.assert_close(*trained)


def test_gradients_reach_every_parameter_and_point(model, cloud):
    x = cloud(4, 40, 2, grad=True)
    answer(model.double().train(), x).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 1e-9, name
    assert x.grad.isfinite().all() and x.grad.abs().amax((1, 2)).min() > 1e-9


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_scores_classes(name, cloud):
    out = MODELS[name]()(cloud(3, 7, 2, dtype=torch.float32))
    assert out.logits.shape == (3, 2) and out.equilibrium is None


@pytest.mark.parametrize("name", COMPLETERS)
def test_a_completion_has_as_many_points_as_asked_for(name, cloud):
    x = cloud(3, 16, 2, dtype=torch.float32)
    weights = (torch.arange(16) < torch.tensor((16, 9, 2))[:, None]).float()
    out = MODELS[name]()(x, weights, noise=torch.randn(3, 9, 2))
    missing = missing_points(weights, 1.5)
    assert missing.tolist() == [8, 4, 1]
    assert torch.equal((out.weights > 0).sum(1), weights.sum(1).long() + missing)
    assert not out.points[out.weights == 0].any() and out.equilibrium is None
    if name == "pcn":
        assert not out.observed.any()
    else:
        assert torch.equal(out.points[out.observed], x[weights > 0])


def test_folding_spreads_points_about_the_coarse_ones(cloud):
    model = PCN(2, 24, 1.5, keep=False, width=8)
    fine = model.decode(cloud(3, 32, dtype=torch.float32)).view(3, 4, model.coarse_points, 2)
    assert (fine[:, :1] - fine[:, 1:]).norm(dim=3).min() > 1e-4


def test_neighbours_are_the_nearest_real_points(clouds):
    (x, weights), _ = clouds
    mask = weights > 0
    for width in (2, 40):  # distances by differences, and by products
        features = x.repeat(1, 1, width // 2)[mask]
        place = padded(features, mask)
        near = neighbours(place, mask, place, mask, 4)
        assert near.mask.sum(1).tolist() == [2] * 2 + [4] * 26
        for i, first, count in ((0, 0, 2), (1, 2, 17), (2, 19, 9)):
            distances = torch.cdist(x[i, :count], x[i, :count])
            for row, index, real in zip(distances, near.index[first:], near.mask[first:], strict=False):
                assert {*(index[real] - first).tolist()} == {*row.topk(min(4, count), largest=False).indices.tolist()}


def test_far_points_are_some_of_the_real_ones_far_apart(clouds):
    (x, weights), _ = clouds
    index, kept = farthest(x, weights > 0, 4)
    assert kept.sum(1).tolist() == [1, 5, 3] and all(
        len({*row[real].tolist()}) == real.sum() for row, real in zip(index, kept, strict=True)
    )
    assert weights.gather(1, index)[kept].all()
    chosen = picked(x, index)[1, :5]
    apart = torch.cdist(chosen, chosen).fill_diagonal_(torch.inf).min()
    left = torch.cdist(x[1], chosen).amin(1).max()
    assert apart >= left  # no point that is left is farther from all chosen ones


def test_an_edge_convolution_is_that_of_the_edges(cloud):
    """max_j act(norm(W [x_i, x_j - x_i])), written out."""
    torch.manual_seed(0)
    layer, x = EdgeConv(3, 5).eval(), cloud(1, 9, 3, dtype=torch.float32)
    mask = torch.ones(1, 9, dtype=torch.bool)
    near = neighbours(x, mask, x, mask, 4)
    joined = torch.cat((layer.own.weight, layer.between.weight), 1)
    pairs = torch.cat((x[0, :, None].expand(-1, 4, -1), x[0][near.index] - x[0, :, None]), 2)
    expected = torch.nn.functional.leaky_relu((pairs @ joined.T) / (1 + layer.norm.eps) ** 0.5, 0.2).amax(1)
    torch.testing.assert_close(layer(x[0], near), expected)


def test_groups_are_normalised_cloud_by_cloud(cloud):
    """Neither a shift nor a scale of all features of a cloud shows in the differences within its groups."""
    torch.manual_seed(0)
    stage, x = Stage(4, 6, 3, 2).eval(), cloud(2, 8, 3, dtype=torch.float32)
    mask = torch.ones(2, 8, dtype=torch.bool)
    features = cloud(16, 4, dtype=torch.float32)
    stage.before[0][0].weight.data[:, 4:] = 0  # the features of the centres
    once, _, kept = stage(features, x, mask)
    factor = torch.tensor([3.0] * 8 + [1.0] * 8)[:, None]
    again, _, _ = stage(factor * features + (factor - 1), x, mask)
    assert kept.sum(1).tolist() == [4, 4]
    torch.testing.assert_close(once, again, rtol=1e-3, atol=1e-3)
    other, _, _ = stage(features.roll(1, 0), x, mask)
    assert (once - other).abs().amax(1).min() > 1e-2


@pytest.mark.parametrize("name", list(MODELS))
def test_the_loop_trains_it(name, rings, tmp_path):
    task = "classify" if name in CLASSIFIERS else "complete"
    config = Config(task=task, epochs=12, batch_size=16, lr=1e-2, warmup=5, jacobian=0.0, growth=1.5, device="cpu")
    trainer = Trainer(config, tmp_path / "run", rings, lambda config, data: MODELS[name]())
    trainer.fit(progress=False)
    losses = [entry["loss"] for entry in read_metrics(tmp_path / "run") if entry["split"] == "train"]
    # A cloud of new points among many kept ones has less to gain.
    assert sum(losses[-4:]) < (0.8 if name in ("pcn-keep", "pointr") else 0.5) * sum(losses[:4])


def test_bad_clouds_are_refused(model, cloud):
    x = cloud(2, 5, 2, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"^x "):
        model(x.index_fill(1, torch.tensor([1]), float("nan")))
    with pytest.raises(ValueError, match="weights leaves no point"):
        model(x, torch.tensor([[1.0] * 5, [0.0] * 5]))
