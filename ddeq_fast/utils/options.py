"""Objects that are described by their options: dataclasses with a short repr, and registries that make them by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from ddeq_fast.utils.validation import check_choice

T = TypeVar("T")


class ShortRepr:
    """For dataclasses with `repr=False`: the fields that differ from their defaults, such as Auto(tol=0.01).

    A class that is no dataclass has no fields to show.
    """

    def __repr__(self) -> str:
        own: tuple[Field[Any], ...] = fields(self) if is_dataclass(self) else ()
        given = [
            f"{item.name}={getattr(self, item.name)!r}"
            for item in own
            if item.repr and (item.default is MISSING or getattr(self, item.name) != item.default)
        ]
        return f"{type(self).__name__}({', '.join(given)})"


def check_options(what: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise TypeError, naming `what` is made and its options, for one that `factory` does not take by keyword."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # one written in C
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    known = [parameter.name for parameter in parameters if parameter.kind in kinds]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(f"{what} has no option {', '.join(unknown)}: its options are {', '.join(sorted(known))}")


class Registry(Generic[T]):
    """Things of one kind, such as "solver", by name; a thing of one's own has the method `method`."""

    def __init__(self, kind: str, method: str):
        self.kind, self.method = kind, method
        self.factories: dict[str, Callable[..., T]] = {}

    def register(self, name: str, factory: Callable[..., T]) -> None:
        """Make what `factory(**options)` returns known as `name`.

        Raises:
            TypeError: the name is no string, or the factory cannot be called. ValueError: the name is taken.
        """
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, got {type(name).__name__}")
        if not callable(factory):
            raise TypeError(f"factory must make a {self.kind} when called, got {type(factory).__name__}")
        if name in self.factories:
            raise ValueError(f"{self.kind} name {name!r} is taken")
        self.factories[name] = factory

    def make(self, thing: str | T, options: Mapping[str, Any]) -> T:
        """The thing of that name with these options; one that is ready is returned as it is.

        Raises:
            ValueError: an unknown name, or an option out of range.
            TypeError: no name and nothing of the kind, an unknown option, or options for a thing that is ready.
        """
        if isinstance(thing, str):
            factory = self.factories[check_choice(self.kind, thing, self.factories)]
            check_options(f"{self.kind} {thing!r}", factory, options)
            return factory(**options)
        article = type(thing).__name__ if not isinstance(thing, type) else f"the class {thing.__name__}"
        # A tensor has a `solve` of another kind.
        if not hasattr(thing, self.method) or isinstance(thing, (type, Tensor)):
            raise TypeError(f"{self.kind} must be a name or a {self.kind.capitalize()}, got {article}")
        if options:
            raise TypeError(f"options {', '.join(options)} need a {self.kind} given by name, got {article}")
        return thing
