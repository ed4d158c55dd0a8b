"""The original's network by its own name: in a model written for it, its float64 results (commit 9fdbd99)."""

import pytest
import torch
from torch import nn

import references
from ddeq_fast.interop.original import mmd_gf, riesz_kernel, squared_mmd
from ddeq_fast.interop.original.network import DEQ
from ddeq_fast.networks import Lift
from problems import close, fails

torchdeq = pytest.importorskip("torchdeq")


class CrossAttentionEncoder(nn.Module):
    """Stands for the original's class of that name."""


class FFN(nn.Module):
    """Stands for the original's class of that name."""


SIZES = {
    "d_z": 16,
    "hidden_dim_equiv_1": 8,
    "hidden_dim_equiv_2": 16,
    "hidden_dim_equiv_3": 8,
    "d_encoder": 16,
    "encoder": CrossAttentionEncoder,
    "num_heads": 4,
    "num_layers": 2,
    "num_layers_self_encoders": 1,
    "dim_feedforward": 64,
    "FFNNetwork": FFN,
    "ffn_hidden": 64,
    "bilinear_pushforward": True,
}
FLOW = {"optimizer": "sgd", "scheduler_kwargs": {"gamma": 1.0}, "stop_type": "mmd", "kernel": riesz_kernel}
FLOW |= {"beta": 0, "gamma_beta": 0, "autodiff": True, "rescale_autodiff": True}


class Model(nn.Module):
    """A DEQ model as one writes it with torchdeq: network, solver, head."""

    def __init__(self, golden, d_x, classes):
        super().__init__()
        torchdeq.solver.register_solver("original", mmd_gf)  # "mmd" is for other tests
        self.deq_model = DEQ(**SIZES, d_x=d_x)
        self.deq = torchdeq.get_deq(
            f_solver="original", f_max_iter=int(golden["flow_steps"]), f_stop_mode="rel", f_tol=0.0
        )
        self.classifier = nn.ModuleDict({"linear": nn.Linear(16, classes)})
        self.lr = float(golden["flow_lr"])

    def forward(self, x, z, mask=None, **masks):
        x_mask = (x != 0).any(-1, keepdim=True)
        options = {
            **FLOW,
            "optim_kwargs": {"lr": self.lr},
            "mask": mask is not None,
            "grad_mask": masks.get("fix_mask"),
        }

        def f(z):
            return self.deq_model(z, x, z_mask=mask, x_mask=x_mask, **masks)[0]

        z = self.deq(f, z, solver_kwargs=options)[0][-1]
        return z, self.classifier["linear"](z.amax(1))


def load(name, d_x):
    golden = references.golden(name)
    tensors, prefix = {k: torch.from_numpy(golden[k]) for k in golden}, "state_dict/"
    model = Model(golden, d_x, golden["logits"].shape[1] if "logits" in golden else 10)
    return model, {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}, tensors


@pytest.mark.parametrize("name, d_x", [("classifier2d", 2), ("classifier3d", 3)])
def test_classifiers(name, d_x):
    model, weights, golden = load(name, d_x)
    model.load_state_dict(weights)
    model.double().eval()
    image, *_ = model.deq_model(golden["z0"], golden["x"], x_mask=(golden["x"] != 0).any(-1, keepdim=True))
    assert close(image.detach(), golden["transport/z0"], 1e-10)
    with torch.no_grad():
        z, logits = model(golden["x"], golden["z0"])
    assert close(z, golden["z_star"], 1e-8)
    assert close(logits, golden["logits"], 1e-8)
    loss = nn.functional.cross_entropy(logits, golden["labels"])
    assert abs(float(loss) - float(golden["loss"])) <= 1e-8 * float(golden["loss"])


def test_completion():
    model, weights, golden = load("completion2d", 2)
    lift = Lift((2, 16))
    lift.load_state_dict(
        {
            k.removeprefix("embedding_model.").replace("_net.0", ".linear1").replace("_net.2", ".linear2"): v
            for k, v in weights.items()
            if k.startswith("embedding_model.")
        }
    )
    weights = {k: v for k, v in weights.items() if not k.startswith("embedding_model.")}
    assert not model.load_state_dict(weights, strict=False).unexpected_keys
    model, lift = model.double().eval(), lift.double()
    mask, observed = golden["z_mask"], golden["observed_mask"]
    with torch.no_grad():
        z, _ = model(golden["x"], lift(golden["z_init"]) * mask, mask, fix_mask=observed, fix_encoders=True)
        completed = torch.where(observed, golden["z_init"], lift.inverse(z)) * mask
    assert close(completed, golden["completed"], 1e-8)
    loss = squared_mmd(completed, golden["full"], kernel=riesz_kernel, mask_x=True, mask_y=True).mean()
    assert abs(float(loss) - float(golden["loss"])) <= 1e-8 * float(golden["loss"])


def test_state_dict_has_the_original_names():
    model, weights, _ = load("classifier2d", 2)
    model.load_state_dict(weights)
    saved = model.state_dict()
    assert set(saved) == set(weights)
    assert all(torch.equal(saved[key], weights[key]) for key in weights)
    with pytest.raises(RuntimeError, match=r"deq_model\.of_mine"):
        model.load_state_dict({**weights, "deq_model.of_mine": torch.zeros(1)})


def test_the_input_cloud_is_encoded_once_a_solve_and_once_for_gradients(monkeypatch):
    model, weights, golden = load("classifier2d", 2)
    model.load_state_dict(weights)
    model.double().train()
    calls, encode = [], model.deq_model.transport.encode
    monkeypatch.setattr(
        model.deq_model.transport, "encode", lambda *a: calls.append(torch.is_grad_enabled()) or encode(*a)
    )
    _, logits = model(golden["x"], golden["z0"])
    logits.sum().backward()
    assert calls == [False, True]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.deq_model.parameters())
    model(golden["x"] + 1, golden["z0"])
    assert len(calls) == 4


@pytest.mark.parametrize(
    "option, text",
    [
        ({"bilinear": False}, "bilinear cannot be mapped: it must be True, got False"),
        ({"encoder": nn.Linear}, "encoder cannot be mapped: it must be None or CrossAttentionEncoder, got 'Linear'"),
        ({"d_encoder": 8}, "d_encoder cannot be mapped: it must be 16, got 8"),
        ({"num_heads_self_encoders": 2}, "num_heads_self_encoders cannot be mapped: it must be None or 4, got 2"),
    ],
)
def test_what_has_no_counterpart_is_named(option, text):
    with pytest.raises(ValueError, match=rf"^{text}$"):
        DEQ(**{**SIZES, **option})


def test_fixed_particles_need_a_single_self_attention_layer():
    network = DEQ(**{**SIZES, "num_layers_self_encoders": 2})
    z, x = torch.randn(1, 4, 16), torch.randn(1, 5, 2)
    with pytest.raises(ValueError, match=r"^fix_mask cannot be mapped"):
        network(z, x, fix_mask=torch.ones(1, 4, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"^fix_all cannot be mapped"):
        network(z, x, fix_all=True)


Z, X = torch.zeros(2, 4, 16), torch.zeros(2, 5, 2)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((Z, X[:1]), {}, ValueError, "z has 2 clouds but x has 1"),
        ((Z[..., :8], X), {}, ValueError, "z must have shape (n, 16) or (B, n, 16), got (2, 4, 8)"),
        ((Z, X[0, 0]), {}, ValueError, "x must have shape (n, 2) or (B, n, 2), got (2,)"),
        ((Z.numpy(), X), {}, TypeError, "z must be a torch.Tensor, got ndarray"),
        ((Z, X), {"z_mask": torch.ones(4, 2, 1) > 0}, ValueError, "z_mask must have shape (2, 4), got (4, 2)"),
        ((Z, X), {"x_mask": torch.ones(2, 4, 1) > 0}, ValueError, "x_mask must have shape (2, 5), got (2, 4)"),
        (
            (Z, X),
            {"fix_mask": torch.ones(2, 4, 1)},
            TypeError,
            "fix_mask must have dtype torch.bool, got torch.float32",
        ),
    ],
)
def test_clouds_and_masks_that_do_not_go_together(arguments, options, error, message):
    with fails(error, message):
        DEQ(**SIZES)(*arguments, **options)
