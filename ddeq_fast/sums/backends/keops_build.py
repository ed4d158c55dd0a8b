"""pykeops' compiled formulas: pykeops is imported once and quietly, and its files on disk are checked before use.

pykeops compiles a formula into a folder that processes share, and takes what it finds there for whole. A process that
is killed leaves files cut short, and one that is compiling has not finished them: here one process compiles at a time,
and what it made is sealed with a checksum. Files without a valid seal are deleted and made again.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib
import importlib.util
import os
import pickle
import re
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

# pykeops keeps the arguments of a call in objects that all threads share, so that calls take turns; it holds the
# interpreter's lock while it computes in any case.
_TURN = threading.RLock()
_ROUTINES: dict = {}
_CHECKED: set = set()
# A process that ends may be writing the list of formulas just when another reads it.
_ATTEMPTS = 3


class _Silent(types.ModuleType):
    """keopscore while it is imported: it reports what it finds to standard output unless this attribute is false."""

    verbose = property(lambda module: False)


def reason() -> str | None:
    """Why pykeops cannot be used here, or None if it can."""
    try:
        with _TURN:
            _import()
    except OSError as error:
        return (
            f"pykeops cannot use its cache folder {error.filename}: {error.strerror}; set KEOPS_CACHE_FOLDER to a "
            "folder that can be written"
        )
    except ImportError as error:
        return f"pykeops cannot be imported: {error}"
    return None


def reduce(formula: str, *arrays: Tensor) -> Tensor:
    """The sum of a formula over the index of its variables of category 1, pykeops' j: (B, m, size of the formula).

    Variable k of the formula is arrays[k]: (B, m, d) or (B, n, d), or (1, d) for parameters.

    Raises ValueError naming the folder if the formula cannot be compiled or loaded.
    """
    with _TURN:
        pykeops = _import()
        if formula not in _ROUTINES:
            _ROUTINES[formula] = pykeops.torch.Genred(formula, [], reduction_op="Sum", axis=1)
        routine, key = _ROUTINES[formula], (formula, arrays[0].dtype, arrays[0].device)
        if key in _CHECKED:
            return routine(*arrays)
        result = _first(routine, arrays, Path(pykeops.get_build_folder()))
        _CHECKED.add(key)
        return result


def _import() -> types.ModuleType:
    """pykeops. Nothing of the process is redirected meanwhile: other threads go on."""
    if "pykeops.torch" in sys.modules and "pykeops" in sys.modules:
        return sys.modules["pykeops"]
    ours = "keopscore" not in sys.modules
    if ours:
        _import_quietly("keopscore")
    folder = Path(importlib.import_module("keopscore.config").config.get_build_folder())
    for attempt in range(1, _ATTEMPTS + 1):
        _drop_unreadable_lists(folder)
        try:
            pykeops = importlib.import_module("pykeops")
            importlib.import_module("pykeops.torch")
            break
        except Exception:
            # Half an import would be taken for a whole one.
            for name in [name for name in sys.modules if name.split(".")[0] == "pykeops"]:
                del sys.modules[name]
            if attempt == _ATTEMPTS:
                raise
    if ours:
        pykeops.set_verbose(False)
    if not os.access(folder, os.W_OK):
        for cache in _caches():
            atexit.unregister(cache.save_cache)
    return pykeops


def _import_quietly(name: str) -> None:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"no module named {name!r}", name=name)
    module = importlib.util.module_from_spec(spec)
    module.__class__ = _Silent
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        for part in [part for part in sys.modules if part.split(".")[0] == name]:
            del sys.modules[part]
        raise
    module.__class__ = types.ModuleType


def _drop_unreadable_lists(folder: Path) -> None:
    """Delete pykeops' lists of formulas that were cut short."""
    for path in folder.glob("*_cache.pkl"):
        try:
            pickle.loads(path.read_bytes())
        except FileNotFoundError:
            pass
        except Exception:  # of any type, depending on where it ends
            path.unlink(missing_ok=True)


def _caches() -> list:
    """What pykeops remembers of formulas: their code and their loaded modules."""
    from keopscore.get_keops_dll import get_keops_dll
    from pykeops.common.keops_io import keops_binder

    return [get_keops_dll, *keops_binder.values()]


def _first(routine, arrays, folder: Path) -> Tensor:
    """The routine's first call in this process, which compiles it or loads what another process compiled."""
    try:
        with _alone(folder):
            _discard(folder, [tag for tag in _tags(folder, routine.formula) if not _sealed(folder, tag)])
            try:
                result = routine(*arrays)
            except (OSError, ImportError) as error:
                _discard(folder, _named_by(error))
                result = routine(*arrays)
            for tag in _tags(folder, routine.formula):
                if not _sealed(folder, tag):
                    _seal(folder, tag).write_text(_checksum(folder, tag))
            return result
    except (OSError, ImportError) as error:
        raise ValueError(
            f"backend 'keops' cannot compile or load a formula in its cache folder {folder}: {error}; delete the "
            "folder, or set KEOPS_CACHE_FOLDER to another one that can be written"
        ) from error


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While no other process compiles for us in this folder. In a folder that cannot be written none does."""
    import fcntl

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file = stack.enter_context(open(folder / "ddeq_fast.lock", "a"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _tags(folder: Path, formula: str) -> list[str]:
    """pykeops' names for the compiled versions of a formula, and for those that it had no time to note a formula of."""
    tags = []
    for path in folder.glob("*.nfo"):
        text = path.read_text()
        if not text or text.startswith(f"red_formula={formula}\n"):
            tags.append(path.stem)
    return tags


def _named_by(error: Exception) -> list[str]:
    """The tag that an error of the import system or of the file system speaks of."""
    if isinstance(error, ImportError):
        name = error.name
    else:
        name = Path(getattr(error, "filename", None) or "").name.split(".")[0]
    tag = (name or "").removeprefix("pykeops_cpp_")
    return [tag] if re.fullmatch("[0-9a-f]{8,}", tag) else []


def _files(folder: Path, tag: str) -> list[Path]:
    """Sources, notes and compiled code of a tag."""
    return sorted(path for path in folder.glob(f"*{tag}*") if path != _seal(folder, tag))


def _seal(folder: Path, tag: str) -> Path:
    return folder / f"{tag}.sha256"


def _checksum(folder: Path, tag: str) -> str:
    total = hashlib.sha256()
    for path in _files(folder, tag):
        total.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _sealed(folder: Path, tag: str) -> bool:
    seal = _seal(folder, tag)
    return seal.exists() and seal.read_text() == _checksum(folder, tag)


def _discard(folder: Path, tags: list[str]) -> None:
    """Delete all files of these tags, and have pykeops forget them."""
    for tag in tags:
        for path in [_seal(folder, tag), *_files(folder, tag)]:
            path.unlink(missing_ok=True)
    if tags:
        for cache in _caches():
            cache.reset()
        importlib.invalidate_caches()
