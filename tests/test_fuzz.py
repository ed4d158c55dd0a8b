"""Every public function, with what people pass by mistake: a TypeError or ValueError names the argument.

A public parameter has a kind, by its name; a kind has values that are wrong for it, whatever the others are.
"""

import inspect
import re

import pytest
import torch
from mistakes import CLOUD, LATENT, ONES, WRONG

import ddeq_fast
from ddeq_fast import clouds, data, gradients, solvers
from ddeq_fast.data import files, partial, sampling
from ddeq_fast.gradients import jacobian_norm
from ddeq_fast.sums import backends
from ddeq_fast.sums.backends import sliced
from ddeq_fast.sums.certify import certified_error

KINDS = {
    "cloud": "x y z partial completed points target start noise direction labels anchor_labels",
    "weights": "weights x_weights y_weights z_weights target_weights partial_weights completed_weights",
    "charges": "charges",
    "mask": "mask x_mask y_mask partial_mask completed_mask",
    "frozen": "frozen",
    "clouds": "anchors",
    "kernel": "kernel",
    "backend": "backend",
    "size": "num_particles num_classes num_heads max_steps check_every depth steps dim_z dim_x n dim low high count "
    "dim_hidden dim_final directions batch_size patience starts certify",
    "count": "self_layers cross_layers x_layers dim_label",
    "positive": "tolerance bandwidth lr step size sigma r eps mixing radius growth share threshold alpha",
    "nonnegative": "tol ridge momentum beta1 beta2 dropout",
    "share": "damping",
    "number": "weight factor",
    "ratio": "ratio",
    "pair": "lr_decay noise anneal regulariser",
    "tuple": "dim_lift dims widths components",
    "positives": "bandwidths",
    "batch": "batch x_batch y_batch",
    "flag": "per_point checked relative stop_together cuda_graph return_image nesterov prefer rescale "
    "attend_to_padding",
    "choice": "method convention reduction stop_on gradient solver backward kind residual_space",
    "options": "anderson flow",
    "function": "func function loader factory callback offer",
    "object": "model problem transport optimizer draw",
    "name": "name",
    "path": "path",
    "seed": "seed",
}
OPTIONAL = {"patience", "kernel", "num_particles"}  # None switches these off, though it is not what they are by default
KIND = {name: kind for kind, names in KINDS.items() for name in names.split()}


class Case:
    """A function, and arguments that are right; `kinds` of those whose name does not tell theirs, None to leave out."""

    def __init__(self, label, function, right, **kinds):
        self.label, self.function, self.right, self.kinds = label, function, right, kinds

    def __str__(self):
        return self.label

    def parameters(self):
        """Names and kinds of all that can be passed by name."""
        skipped = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        for parameter in inspect.signature(self.function).parameters.values():
            if parameter.kind not in skipped:
                kind = self.kinds[parameter.name] if parameter.name in self.kinds else KIND.get(parameter.name, "?")
                yield parameter, kind

    def calls(self):
        """(argument, wrong value) of every call."""
        for parameter, kind in self.parameters():
            if kind is None or kind == "?":  # a test of its own tells of the latter
                continue
            yield from ((parameter.name, value) for value in WRONG[kind])
            if parameter.default not in (None, inspect.Parameter.empty) and parameter.name not in OPTIONAL:
                yield parameter.name, None


def small(**options):
    torch.manual_seed(0)
    sizes = dict(dim_z=4, dim_x=3, num_heads=2)
    return ddeq_fast.TransportMap(**sizes, **options).double()


def problem():
    return ddeq_fast.Pushforward(lambda z, context, weights: 0.5 * z)


def shown(value):
    """A short name of a value, the same in every process."""
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    return f"{type(value).__name__} {value!r}"[:60] if type(value) is not object else "object"


PARTIAL = {"weights": ONES}
LABELLED = small(dim_label=3)
FLOW = ddeq_fast.MMDFlow
BRIEF = FLOW(max_steps=1, tol=0.0)  # small networks that are not trained have equilibria that are hard to find
PUBLIC = [
    Case("potential", ddeq_fast.potential, {"x": CLOUD, "y": CLOUD}),
    Case("field", ddeq_fast.field, {"x": CLOUD, "y": CLOUD}),
    Case("potential_and_field", ddeq_fast.potential_and_field, {"x": CLOUD, "y": CLOUD}),
    Case("squared_mmd", ddeq_fast.squared_mmd, {"x": CLOUD, "y": CLOUD}),
    Case("mmd_distance", ddeq_fast.mmd_distance, {"x": CLOUD, "y": CLOUD}),
    Case("witness", ddeq_fast.witness, {"z": CLOUD, "x": CLOUD, "y": CLOUD}),
    Case("wasserstein_gradient", ddeq_fast.wasserstein_gradient, {"x": CLOUD, "y": CLOUD}),
    Case("chamfer", ddeq_fast.chamfer, {"x": CLOUD, "y": CLOUD}),
    Case("f_score", ddeq_fast.f_score, {"x": CLOUD, "y": CLOUD, "threshold": 0.1}),
    Case("fidelity", ddeq_fast.fidelity, {"partial": CLOUD, "completed": CLOUD}),
    Case("density_aware_chamfer", ddeq_fast.density_aware_chamfer, {"x": CLOUD, "y": CLOUD}),
    Case("earth_movers_distance", ddeq_fast.earth_movers_distance, {"x": CLOUD, "y": CLOUD}),
    Case("nearest", ddeq_fast.nearest, {"x": CLOUD, "y": CLOUD}),
    Case("MMDLoss", ddeq_fast.MMDLoss, {}),
    Case("MMDLoss.forward", ddeq_fast.MMDLoss().forward, {"x": CLOUD, "y": CLOUD}),
    Case("ChamferLoss", ddeq_fast.ChamferLoss, {}),
    Case("ChamferLoss.forward", ddeq_fast.ChamferLoss().forward, {"x": CLOUD, "y": CLOUD}),
    Case("kde_entropy", ddeq_fast.kde_entropy, {"x": CLOUD, "bandwidth": 1.0}),
    Case("Riesz", ddeq_fast.Riesz, {}),
    Case("Gaussian", ddeq_fast.Gaussian, {}),
    Case("Laplacian", ddeq_fast.Laplacian, {}),
    Case("InverseMultiquadric", ddeq_fast.InverseMultiquadric, {}),
    Case("Mixture", ddeq_fast.Mixture, {"components": ((1.0, ddeq_fast.Riesz()),)}),
    Case(
        "pad", ddeq_fast.pad, {"clouds": [CLOUD[0], CLOUD[1, :2]]}, clouds="list of clouds", weights="list of weights"
    ),
    Case("pad a batch vector", lambda batch: ddeq_fast.pad(CLOUD[0], batch=batch), {"batch": torch.zeros(4).long()}),
    Case(
        "in_buckets",
        ddeq_fast.in_buckets,
        {"function": lambda x, y: x.points.sum((1, 2)), "x": [CLOUD[0], CLOUD[1, :2]], "y": [CLOUD[0], CLOUD[1, :2]]},
        x="list of clouds",
        y="list of clouds",
        x_weights="list of weights",
        y_weights="list of weights",
    ),
    Case("normalise", clouds.normalise, {"points": CLOUD}),
    Case("compact", clouds.compact, {"points": CLOUD, "weights": ONES}, weights="charges", mask="frozen"),
    Case("spread_normal", clouds.spread_normal, {"n": 3, "dim": 2}),
    Case(
        "Pushforward",
        ddeq_fast.Pushforward,
        {"func": lambda z, context, weights: z},
        context=None,
        weights=None,
        frozen=None,
        labels=None,
    ),
    Case(
        "solve with labels",
        lambda labels: ddeq_fast.solve(ddeq_fast.Pushforward(lambda z, c, w: 0.5 * z, None, labels=labels), CLOUD),
        {"labels": CLOUD},
    ),
    Case("FixedTarget", ddeq_fast.FixedTarget, {"target": CLOUD}, target_weights=None, weights=None, frozen=None),
    Case(
        "solve",
        lambda problem, start, solver="auto", *, scale=None, callback=None: ddeq_fast.solve(
            problem, start, solver, scale=scale, callback=callback
        ),
        {"problem": problem(), "start": CLOUD},
        scale="scale",
    ),
    Case("MMDFlow", FLOW, {}, kernel="kernels"),
    Case("Anderson", ddeq_fast.Anderson, {}),
    Case("Auto", ddeq_fast.Auto, {}),
    Case("SGD", solvers.SGD, {}),
    Case("Adam", solvers.Adam, {}),
    Case("solvers.register", solvers.register, {"name": "fuzzed", "factory": FLOW}),
    Case("solvers.make", lambda solver: solvers.make(solver), {"solver": "flow"}),
    Case("Phantom", ddeq_fast.Phantom, {}),
    Case("ImplicitFunction", ddeq_fast.ImplicitFunction, {}),
    Case("Bilevel", ddeq_fast.Bilevel, {}, damping="nonnegative"),
    Case("gradients.register", gradients.register, {"name": "fuzzed", "factory": ddeq_fast.Phantom}),
    Case("gradients.make", lambda backward: gradients.make(backward), {"backward": "ift"}),
    Case("jacobian_norm", jacobian_norm, {"problem": problem(), "z": CLOUD}, image="cloud"),
    Case("TransportMap", ddeq_fast.TransportMap, {"dim_z": 4}, network_dtype="dtype"),
    Case("TransportMap.encode", small().encode, {"x": CLOUD}),
    Case(
        "TransportMap.labelled",
        LABELLED.labelled,
        {"context": LABELLED.encode(CLOUD), "labels": CLOUD},
        context="object",
    ),
    Case("Lift", ddeq_fast.Lift, {"dims": (3, 4)}),
    Case(
        "DDEQ",
        lambda transport, num_particles=3, solver="auto", backward="ift", seed=0, return_image=False: ddeq_fast.DDEQ(
            transport, num_particles, solver=solver, backward=backward, seed=seed, return_image=return_image
        ),
        {"transport": small()},
    ),
    Case(
        "DDEQ with labels",
        lambda labels, residual_space="product": ddeq_fast.DDEQ(
            LABELLED, 4, labels=labels, residual_space=residual_space
        ),
        {"labels": "drawn"},
        labels="choice",
    ),
    Case(
        "DDEQ.forward",
        ddeq_fast.DDEQ(LABELLED, 4, solver=BRIEF).double().forward,
        {"x": CLOUD, "anchors": (LATENT, ONES), "anchor_labels": CLOUD},
        start="latent",
        labels="labels",
        anchor_labels="labels of each",
    ),
    Case(
        "Classifier",
        lambda transport, num_classes: ddeq_fast.Classifier(transport, num_classes),
        {"transport": small(), "num_classes": 2},
    ),
    Case(
        "Classifier.forward",
        ddeq_fast.Classifier(LABELLED, 2, solver=BRIEF).double().forward,
        {"x": CLOUD},
        start="latent",
        labels="labels",
    ),
    Case(
        "Completer",
        lambda transport, growth=1.5, widths=(), mass="equal": ddeq_fast.Completer(
            transport, growth, widths, mass=mass
        ),
        {"transport": small()},
        mass="choice",
    ),
    Case(
        "Completer.forward",
        ddeq_fast.Completer(LABELLED, growth=2.0, solver=BRIEF).double().forward,
        {"x": CLOUD},
        start="clouds",
        points="size",
    ),
    Case(
        "Completer.draw_start",
        ddeq_fast.Completer(small(), growth=2.0).double().draw_start,
        {"x": CLOUD},
        noise="cloud",
        points="size",
    ),
    Case(
        "audit",
        lambda model, x, weights=None, *, mask=None, targets=None, starts=1, seed=0: ddeq_fast.audit(
            model, x, weights, mask=mask, targets=targets, starts=starts, seed=seed
        ),
        {"model": ddeq_fast.Classifier(small(), 2, num_particles=2).double(), "x": CLOUD},
        targets="class labels",
    ),
    Case("Clusters", partial.Clusters, {}),
    Case("Fraction", partial.Fraction, {}),
    Case(
        "a removal",
        partial.Clusters(),
        {"clouds": CLOUD[0], "draw": torch.Generator()},
        clouds="clouds or one",
        draw="object",
    ),
    Case("voxel_grid", sampling.voxel_grid, {"points": CLOUD[0], "size": 0.5}),
    Case("voxel_reduce", sampling.voxel_reduce, {"points": CLOUD[0], "low": 1, "high": 4}),
    Case("to_unit_ball", sampling.to_unit_ball, {"points": CLOUD[0]}),
    Case("data.register", data.register, {"name": "fuzzed", "loader": abs}),
    Case("data.load", lambda name: data.load(name), {"name": "digits"}, name="choice"),
    Case("to_unit_box", sampling.to_unit_box, {"points": CLOUD[0]}),
    Case("load_mesh", files.load_mesh, {"path": "missing.obj"}),
    Case("load_points", files.load_points, {"path": "missing.npy"}, dtype="dtype"),
    Case("certified_error", certified_error, {"found": CLOUD, "x": CLOUD, "y": CLOUD}, found="object", samples="size"),
    Case("backends.get", lambda backend: backends.get(backend), {"backend": "dense"}),
    Case("backends.Sliced", sliced.Sliced, {}, share=None),
    Case("backends.set_memory_budget", backends.set_memory_budget, {"size": "1G"}, size="budget"),
]

CALLS = [(case, argument, value) for case in PUBLIC for argument, value in case.calls()]
# With right arguments these look for a file, or make a name known for good.
UNTRIED = {"load_points", "load_mesh", "data.register", "backends.set_memory_budget"}
UNTRIED |= {"solvers.register", "gradients.register"}


def test_every_parameter_has_a_kind():
    unknown = [f"{case}({parameter.name})" for case in PUBLIC for parameter, kind in case.parameters() if kind == "?"]
    assert not unknown


def test_everything_public_is_called():
    """All of the front door that can be called: what is missing is made by a call, or checks nothing."""
    called = {str(case).split(".")[0] for case in PUBLIC}
    made = {"Equilibrium", "PointClouds", "Audit", "ConvergenceWarning", "RadialKernel"}
    assert set(ddeq_fast.__all__) - called == made


def test_there_are_enough_calls():
    assert len(CALLS) >= 2000


@pytest.mark.parametrize("case", [case for case in PUBLIC if case.label not in UNTRIED], ids=str)
def test_right_arguments_are_accepted(case):
    case.function(**case.right)


@pytest.mark.parametrize("case", PUBLIC, ids=str)
def test_wrong_arguments_are_refused_by_name(case):
    faults = []
    for argument, value in case.calls():
        try:
            case.function(**{**case.right, argument: value})
        except (TypeError, ValueError) as error:
            if not re.search(rf"\b{argument}\b", str(error)):
                faults.append(f"{argument}={shown(value)}: {type(error).__name__}: {error}")
        except Exception as error:
            faults.append(f"{argument}={shown(value)}: {type(error).__name__}: {error}")
        else:
            faults.append(f"{argument}={shown(value)} is accepted")
    assert not faults, "\n".join(["", *faults])
