"""What people pass by mistake, by the kind of a parameter."""

import numpy as np
import torch

import ddeq_fast

NAN = float("nan")
HUGE = 10**400
CLOUD = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LATENT = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
ONES = torch.ones(2, 4, dtype=torch.float64)


def spoilt(tensor, value):
    """The tensor with one number replaced."""
    tensor = tensor.clone()
    tensor.view(-1)[0] = value
    return tensor


OBJECTS = ["text", 3, True, [[1.0, 2.0, 3.0]], np.ones((4, 3)), 1.5, {}, object()]
WRONG = {
    "cloud": [
        *OBJECTS,
        torch.ones(2, 4, 3, dtype=torch.int64),
        torch.ones(2, 4, 3, dtype=torch.bool),
        torch.ones(2, 4, 3, dtype=torch.complex128),
        spoilt(CLOUD, NAN),
        spoilt(CLOUD, float("inf")),
        CLOUD[:, :0],
        CLOUD[..., :0],
        CLOUD[0, 0],
        CLOUD[None],
        torch.tensor(1.0, dtype=torch.float64),
    ],
    "weights": [
        *OBJECTS,
        spoilt(ONES, NAN),
        spoilt(ONES, float("inf")),
        spoilt(ONES, -1.0),
        ONES[:, :3],
        ONES[0],
        ONES.float(),
        ONES.long(),
        0 * ONES,
        torch.zeros(2, 4, dtype=torch.bool),
    ],
    "charges": [
        *OBJECTS,
        spoilt(ONES, NAN),
        spoilt(ONES, float("-inf")),
        ONES[:, :3],
        ONES[0],
        ONES.float(),
        ONES.long(),
    ],
    "mask": [*OBJECTS, ONES, ONES.long(), torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 4, dtype=torch.bool)],
    "frozen": [*OBJECTS, ONES, ONES.long(), torch.ones(2, 3, dtype=torch.bool)],
    "clouds": [*OBJECTS, CLOUD, (CLOUD,), (CLOUD, ONES, ONES), (spoilt(CLOUD, NAN), ONES), (CLOUD, -ONES), ("a", "b")],
    "list of clouds": [
        "text",
        3,
        True,
        1.5,
        [],
        ["a"],
        [CLOUD[0], 3],
        [spoilt(CLOUD[0], NAN)],
        [CLOUD[0], CLOUD[0].float()],
    ],
    "list of weights": ["text", 3, True, [], ["a"], [-ONES[0]], [spoilt(ONES[0], NAN)], [ONES[0], ONES[0]]],
    "batch": [
        *OBJECTS,
        ONES[0],
        torch.zeros(3).long(),
        torch.tensor([0, 1, 0, 1]),
        torch.tensor([0, 0, 2, 2]),
        torch.tensor([1, 1, 1, 1]),
        torch.tensor([-1, 0, 0, 1]),
        torch.tensor([0, 1, 2, 2**40]),
    ],
    "kernel": ["riesz", 1.0, True, ddeq_fast.Riesz, [ddeq_fast.Riesz()], {}],
    "backend": ["nonsense", "", 3, True, b"auto", ["auto"], 1.5],
    "size": [True, 1.5, "3", NAN, HUGE, 0, -1, [1], torch.tensor([2, 3]), 2 + 1j, float("inf")],
    "count": [True, 1.5, "3", NAN, HUGE, -1, [1], torch.tensor([2, 3]), 2 + 1j, float("inf")],
    "positive": [True, "1", NAN, float("inf"), HUGE, 0, -1.0, [1.0], 1j, torch.ones(2), {}],
    "nonnegative": [True, "1", NAN, float("inf"), HUGE, -1.0, [1.0], 1j, torch.ones(2), {}],
    "share": [True, "1", NAN, float("inf"), HUGE, 1.5, -1.0, [1.0], 1j, torch.ones(2), {}],
    "number": [True, "1", NAN, float("inf"), HUGE, [1.0], 1j, torch.ones(2), {}],
    "ratio": [True, "1", NAN, float("inf"), HUGE, 1, 0.5, -2.0, [2.0], 1j, torch.ones(2), {}],
    "flag": [1, 0.0, "yes", [], torch.tensor(True), NAN],
    "choice": ["nonsense", "", 3, True, b"sgd", [], 1.5],
    "function": [3, "f", True, [], 1.5],
    "name": [3, True, b"x", [], 1.5],
    "path": [3, True, [], 1.5, {}],
    "pair": ["text", 3, True, [], (1.0,), (1.0, 2.0, 3.0), ("a", "b"), (NAN, 1.0), (True, True), {}],
    "tuple": ["text", 3, True, ("a", "b", "c"), (NAN, NAN, NAN), (1.5, 2.5, 3.5), (-1, -2, -3), (True, True, True), {}],
    "positives": ["text", 3, True, ("a", "b"), (NAN,), (0.0, 1.0), (-1, -2, -3), (float("inf"),), (True, True), {}],
    "options": ["text", 3, True, [], {"nonsense": 1}],
    "object": ["text", 3, True, [], 1.5, {}, object(), torch.nn.Linear(3, 3), torch.nn.Linear],
    "dtype": ["float32", 3, True, [], torch.int64, float],
    "scale": [*OBJECTS, torch.ones(3), torch.ones(2).long(), torch.tensor([1.0, NAN]), torch.tensor([1.0, 0.0])],
    "latent": [
        *OBJECTS,
        CLOUD,
        LATENT.float(),
        LATENT[:1],
        LATENT[0],
        spoilt(LATENT, NAN),
        LATENT.long(),
        LATENT[:, :0],
    ],
    "labels": [*OBJECTS, LATENT, CLOUD.float(), CLOUD[:1], spoilt(CLOUD, NAN), CLOUD.long(), CLOUD[:, :0], CLOUD[0, 0]],
    "labels of each": [*OBJECTS, LATENT, CLOUD.float(), CLOUD[:1], CLOUD[0], spoilt(CLOUD, NAN), CLOUD.long()],
    "clouds or one": [*OBJECTS, spoilt(CLOUD[0], NAN), CLOUD, CLOUD[0, 0], CLOUD[0].long(), CLOUD[0, :0]],
    "kernels": ["riesz", 1.0, True, ddeq_fast.Riesz, [], ["riesz"], {}],
    "budget": [True, 1.5, -1, 0, "much", "", [], "-1G", NAN],
    "class labels": [
        "text",
        3,
        True,
        1.5,
        {},
        torch.ones(2),
        torch.ones(3).long(),
        torch.tensor([0, 2]),
        -torch.ones(2).long(),
    ],
    "seed": [True, 1.5, "3", NAN, HUGE, -1, [1]],
}
