"""Particles moved onto a target cloud by the MMD flow, and its checkpoints.

The flow descends MMD^2 / 2 along its Wasserstein gradient (Arbel et al. 2019), the field of particles minus target,
with momentum and steps that shrink to nothing. Of large clouds in Riesz(1) it is sliced, in new directions every step:
the noise of that vanishes with the distance, where that of minibatches stays (Hertrich et al. 2024).

Several processes hold all points each and share the work of a step: each sums at its particles, or along its
directions, and one sum over the processes gives all of them the field. A checkpoint knows nothing of their number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from ddeq_fast.commands import cloud_pictures
from ddeq_fast.sums import backends
from ddeq_fast.sums.backends import costs
from ddeq_fast.sums.backends.sliced import Sliced
from ddeq_fast.sums.certify import certified_error
from ddeq_fast.sums.fields import field
from ddeq_fast.sums.mmd import signed_measure, squared_mmd
from ddeq_fast.sums.radial import RadialKernel, Riesz, check_kernel
from ddeq_fast.training.processes import Processes
from ddeq_fast.utils import checkpoints
from ddeq_fast.utils.validation import check_cloud, check_integer, check_number

# A progress report looks at all points, sliced, or in other kernels at so many of either cloud.
SLICED = Sliced()
MONITORED = 4096
# Reports of a flow, at most, and particles at which the field of a step before one is compared with exact sums.
REPORTS, COMPARED = 20, 100
# Seconds for which "auto" keeps to exact sums.
PATIENCE = 60.0


@dataclass(frozen=True)
class Settings:
    """How a cloud is moved.

    particles: how many; steps: of the flow; lr: the first step's length, in units of the target's spread, for a unit
    field; it falls linearly to nothing. momentum: in [0, 1). minibatch: particles and target points that make the field
    of one step, drawn anew; all if 0. directions: of a sliced step. seed: of the start and of what is drawn.
    """

    particles: int
    steps: int = 200
    lr: float = 1.0
    momentum: float = 0.9
    minibatch: int = 0
    directions: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("particles", self.particles)
        check_integer("steps", self.steps)
        check_number("lr", self.lr)
        check_number("momentum", self.momentum, high=1.0, closed=True)
        check_integer("minibatch", self.minibatch, low=0)
        check_integer("directions", self.directions)
        check_integer("seed", self.seed, low=0)
        if self.seed + self.steps >= 1 << 63:
            raise ValueError(f"seed and steps must be less than 2^63 together, got {self.seed} and {self.steps}")


class CloudFlow:
    """The flow of `settings` onto `target` (n, d), step by step; all lengths inside are of the target's spread.

    Args:
        target: a cloud (n, d).
        kernel: radial kernel, its bandwidth in units of the target's spread (root mean square distance from its mean).
        backend: a name, or "auto": exact where all steps are predicted to take less than a minute, else the fastest;
            with a tolerance, the fastest within it.
        tolerance: of the field of a step, as in `ddeq_fast.field`.
        processes: among which the sums are shared.

    Attributes:
        error: relative error of the field in the last step before a report, of sums that are estimates, estimated at
            some particles; None for exact ones, and in all but the main process.

    Raises:
        TypeError, ValueError: a bad target, kernel, backend or tolerance, another target in another process.
    """

    def __init__(
        self,
        target: Tensor,
        settings: Settings,
        kernel: RadialKernel | None = None,
        backend: str = "auto",
        *,
        tolerance: float | None = None,
        processes: Processes | None = None,
    ):
        check_cloud("target", target)
        if target.dim() != 2:
            raise ValueError(f"target must have shape (n, d), got {tuple(target.shape)}")
        self.settings, self.kernel, self.processes = settings, check_kernel(kernel), processes or Processes()
        self._hash = checkpoints.checksum({"target": target})
        if len(set(self.processes.gather(self._hash))) > 1:
            raise ValueError("target must be the same in all processes")
        self.centre = target.mean(0)
        self.spread = (target - self.centre).square().sum(1).mean().sqrt()
        if not float(self.spread) > 0:
            raise ValueError("target must hold two different points")
        self.target = (target - self.centre) / self.spread
        self.generator = torch.Generator().manual_seed(settings.seed)
        # A ball of particles about the target, as wide as it is.
        self.x = self._normal(settings.particles, target.shape[1]) / target.shape[1] ** 0.5
        self.velocity = torch.zeros_like(self.x)
        self.done = 0
        self.history: list[tuple[int, float]] = []
        # What pictures show of the way: particles by step, in the plane of pictures.
        self.frames: dict[int, Tensor] = {}
        self._view = cloud_pictures.view(target)
        self._moments = cloud_pictures.all_moments(settings.steps)
        self._asked = backends.to_tolerance(backend, tolerance)
        self.backend = self.processes.gather(self._choose())[0]
        self.error: float | None = None

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.target)

    def _choose(self) -> str:
        """The backend; "auto" weighs compiling against all steps, and the user's time against exactness."""
        backends.check_whole("CloudFlow", self._asked)
        x, sources = (self.target[:1].expand(count, -1)[None] for count in (self._share(), self.charges()))
        chosen = backends.resolve(self._asked, x, sources, self.kernel)
        if not self._automatic() or self.target.device.type != "cpu":
            return chosen

        def seconds(name: str) -> float:
            able = backends.get(name).unsupported(x, sources, self.kernel) is None
            step = self.step_seconds(name) if able else None
            return math.inf if step is None else costs.first_seconds(name, self.x.shape[1]) + self.settings.steps * step

        exact = min(("dense", "compiled"), key=seconds)
        if backends.tolerance(self._asked) is not None:
            return min((exact, chosen), key=seconds)
        if seconds(exact) < PATIENCE or not self._sliceable():
            return exact
        return min((exact, "sliced"), key=seconds)

    def _automatic(self) -> bool:
        return backends.base(self._asked) == "auto"

    def _share(self) -> int:
        """Particles at which a process sums, at most."""
        return -(-len(self.x) // self.processes.size)

    def _sliceable(self) -> bool:
        """Whether slices are good whatever the clouds: those of other kernels than Riesz(1) can be poor."""
        return all(term == Riesz(1.0) for _, term in self.kernel.terms())

    def charges(self) -> int:
        """How many charges make the field of one step."""
        size = self.settings.minibatch
        return sum(min(len(cloud), size or len(cloud)) for cloud in (self.x, self.target))

    def step_seconds(self, backend: str | None = None) -> float | None:
        """Predicted time of a step with this backend, its own if None; None where it was not measured."""
        name = backends.base(backend or self.backend)
        targets = len(self.x) if name == "sliced" else self._share()
        if self.target.device.type != "cpu":
            return None
        shape = (1, targets, self.charges(), self.target.shape[1])
        seconds = costs.call_seconds(name, shape, self.kernel, self.x.dtype)
        if seconds is None or name != "sliced":
            return seconds
        return seconds * -(-self.settings.directions // self.processes.size) / SLICED.directions

    def reports(self, step: int) -> bool:
        """Whether this step is followed by a report."""
        return step % -(-self.settings.steps // REPORTS) == 0 or step == self.settings.steps

    def step(self) -> None:
        """Move all particles once; raises FloatingPointError if the steps are too long to stay finite."""
        self.velocity = self.settings.momentum * self.velocity - self._field()
        self.x = self.x + self.settings.lr * (1 - self.done / self.settings.steps) * self.velocity
        self.done += 1
        if not bool(torch.isfinite(self.x).all()):
            raise FloatingPointError(f"the particles left all bounds in step {self.done}: choose a smaller lr")

    def _field(self) -> Tensor:
        """Wasserstein gradient at the particles, estimated if charges or directions are drawn."""
        (x, a), (y, b) = (self._draw(cloud) for cloud in (self.x, self.target))
        sources, charges = signed_measure(x, y, a, b)
        # Comparing takes as long as a good part of a step, so that most steps go without.
        compared = self.reports(self.done + 1) and not backends.exact(self.backend)
        if self.backend == "sliced":
            # Sorted once, as a cloud on itself, if the sources are the particles and the target.
            targets = self.x if self.settings.minibatch else sources
            seed = self.settings.seed + self.done
            f = self._sliced(targets, sources, charges, seed, field=True, checked=compared)[: len(self.x)]
        else:
            f, share = torch.zeros_like(self.x), self._share()
            own = slice(share * self.processes.rank, share * (self.processes.rank + 1))
            if len(mine := self.x[own]):
                f[own] = field(mine, sources, self.kernel, charges=charges, backend=self.backend)
            f = self.processes.sum(f)
        if compared and self.processes.main:
            self.error = float(certified_error(f, self.x, sources, self.kernel, charges=charges, samples=COMPARED))
        return f

    def _sliced(self, x: Tensor, y: Tensor, v: Tensor, seed: int, *, field: bool, checked: bool) -> Tensor:
        """The potential (m,) or the field (m, d) at x, along the directions of all processes."""
        share = self.processes.rank, self.processes.size
        sliced = Sliced(self.settings.directions, seed=seed, checked=False, share=share)
        clouds = x[None], y[None], v[None]
        parts = sliced.evaluate(*clouds, self.kernel, not field, field)
        u, f = (None if part is None else self.processes.sum(part) for part in parts)
        if checked and self.processes.main:
            sliced.check((u, f), *clouds, self.kernel)
        found = f if field else u
        assert found is not None  # it is what was asked for
        return found[0]

    def _draw(self, cloud: Tensor) -> tuple[Tensor, Tensor]:
        """Points that stand for the cloud in one step, and their weights."""
        size = self.settings.minibatch
        if size and size < len(cloud):
            cloud = cloud[torch.randint(len(cloud), (size,), generator=self.generator).to(cloud.device)]
        return cloud, cloud.new_full((len(cloud),), 1 / len(cloud))

    def distance(self) -> float:
        """MMD between particles and target: in Riesz(1) of all of them, sliced to some percent; else of some points."""
        x, y = self.x, self.target
        if self._sliceable():
            z, w = signed_measure(x, y, *(cloud.new_full((len(cloud),), 1 / len(cloud)) for cloud in (x, y)))
            u = self._sliced(z, z, w, self.settings.seed, field=False, checked=True)
            return float((w * u).sum().clamp_min(0).sqrt())
        generator = torch.Generator().manual_seed(self.settings.seed)
        x, y = (cloud[torch.randperm(len(cloud), generator=generator)[:MONITORED].to(cloud.device)] for cloud in (x, y))
        return float(squared_mmd(x, y, self.kernel, backend=self.backend).clamp_min(0).sqrt())

    def note(self) -> float:
        """Record the distance under the steps done, and return it."""
        self.history.append((self.done, self.distance()))
        return self.history[-1][1]

    def look(self) -> None:
        """Keep what the cloud looks like, if a picture wants it after this step."""
        if self.done in self._moments:
            self.frames[self.done] = self.seen(self.points())

    def seen(self, points: Tensor) -> Tensor:
        """Some of the points (n, d) as pictures show them, (m, 2)."""
        return cloud_pictures.seen(points, self._view)

    def points(self) -> Tensor:
        """The particles (n, d) in the target's own coordinates."""
        return self.x * self.spread + self.centre

    def save(self, path: Path) -> None:
        """Write all that `restore` needs to go on as if nothing had happened, atomically; the main process alone."""
        if not self.processes.main:
            return
        tensors = {"x": self.x, "velocity": self.velocity, "generator": self.generator.get_state(), "view": self._view}
        tensors |= {f"frame.{step}": frame for step, frame in self.frames.items()}
        checkpoints.save(path, tensors, {"done": self.done, "history": self.history, "of": self._identity()})

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint, with its backend if this flow's is "auto"; of any number of processes.

        Raises ValueError naming it if it is damaged or of another flow: other settings, kernel, backend, tolerance,
        dtype or target, which is told by a hash of its points.
        """
        tensors, info = checkpoints.load(path)
        there, here = info.get("of"), self._identity()
        if not isinstance(there, dict):
            raise ValueError(f"{path} is no checkpoint of a flow")
        backend = there.get("backend")
        if self._automatic() and isinstance(backend, str) and backend.partition("@")[0] in backends.names():
            here["backend"] = backends.resolve(backend, self.x[None], self.target[None], self.kernel)
        other = [
            f"{name} {there.get(name)!r}, not {value!r}" for name, value in here.items() if there.get(name) != value
        ]
        if other:
            raise ValueError(f"{path} is of another flow: {', '.join(other)}")
        self._check_state(path, tensors, info)
        try:
            self.generator.set_state(tensors["generator"])
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{path} is damaged: its state of random numbers is wrong: {error}") from error
        self.x, self.velocity = (tensors[name].to(self.target) for name in ("x", "velocity"))
        self.done, self.history = info["done"], [tuple(entry) for entry in info["history"]]
        self.backend, self._view = here["backend"], tensors["view"]
        self.frames = {
            int(name[len("frame.") :]): value for name, value in tensors.items() if name.startswith("frame.")
        }

    def _check_state(self, path: Path, tensors: dict[str, Tensor], info: dict) -> None:
        """Raises ValueError naming `path` unless this is a state that the flow can be in."""
        done, history = info.get("done"), info.get("history")
        steps = [entry[0] for entry in history] if _is_history(history) else None
        if type(done) is not int or not 0 <= done <= self.settings.steps:
            raise ValueError(f"{path} is damaged: it is after step {done!r} of {self.settings.steps}")
        if steps is None or steps != sorted(set(steps)) or (steps and not 0 <= steps[0] <= steps[-1] <= done):
            raise ValueError(f"{path} is damaged: its history is wrong")
        shapes = {"x": self.x.shape, "velocity": self.x.shape, "view": self._view.shape}
        frames = {f"frame.{step}" for step in self._moments if step <= done}
        wrong = sorted({*shapes, "generator"} - tensors.keys())
        wrong += sorted(tensors.keys() - {*shapes, "generator"} - frames)
        wrong += sorted(name for name in frames & tensors.keys() if not _is_plane_cloud(tensors[name]))
        wrong += sorted(
            name
            for name in shapes.keys() & tensors.keys()
            if tensors[name].shape != shapes[name] or not _is_finite(tensors[name])
        )
        if wrong:
            raise ValueError(
                f"{path} is damaged: {', '.join(wrong[:8])} missing, unknown, of another shape or not finite"
            )

    def _identity(self) -> dict:
        """What a checkpoint must share with the flow that continues it; the device may be another."""
        target = f"{len(self.target)} x {self.target.shape[1]} of spread {float(self.spread):.6g}"
        return {
            **vars(self.settings),
            "kernel": str(self.kernel),
            "target": target,
            "hash of the target": self._hash,
            "dtype": str(self.x.dtype),
            "backend": self.backend,
            "tolerance": backends.tolerance(self._asked) if self._automatic() else None,
        }


def _is_finite(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and bool(torch.isfinite(tensor).all())


def _is_plane_cloud(tensor: Tensor) -> bool:
    return tensor.dim() == 2 and tensor.shape[1] == 2 and _is_finite(tensor)


def _is_history(entries: object) -> TypeGuard[list[list]]:
    return isinstance(entries, list) and all(
        isinstance(entry, list)
        and len(entry) == 2
        and type(entry[0]) is int
        and type(entry[1]) in (int, float)
        and math.isfinite(entry[1])
        for entry in entries
    )
