"""How the processes of one job write the files of a run: the main one alone, under a lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor

from ddeq_fast.training.config import Config
from ddeq_fast.training.processes import Processes
from ddeq_fast.training.run import BEST, CONFIG_FILE, LAST, LOCK, METRICS_FILE, is_empty, line
from ddeq_fast.utils import checkpoints, files, locks


def check_empty(folder: Path) -> None:
    """Raises FileExistsError if a run is in `folder`."""
    if not is_empty(folder):
        raise FileExistsError(f"{folder} already holds a run: continue it with --resume, or choose another --run")


class Records:
    """The files of the run in `folder`, for each of `processes`; errors of the main one are raised in all."""

    def __init__(self, folder: Path, processes: Processes):
        self.folder, self.processes = folder, processes
        # Checksum of the last checkpoint that was read or written here.
        self._last: str | None = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other job writes to the folder meanwhile; raises InUse if one does, OSError if it cannot be written."""
        with ExitStack() as stack:
            lock = locks.alone(self.folder / LOCK, f"run folder {self.folder}")
            self._main(lambda: stack.enter_context(lock))
            yield

    def _main(self, work: Callable[[], object]) -> None:
        """Do it in the main process; what goes wrong there is raised in all."""
        failure = None
        if self.processes.main:
            try:
                work()
            except Exception as error:
                failure = error
        failure = self.processes.gather(failure)[0]
        if failure is not None:
            raise failure

    def make_folder(self) -> None:
        """The folder of a new run, with those around it."""
        self._main(lambda: self.folder.mkdir(parents=True, exist_ok=True))

    def create(self, config: Config, save: Callable[[], None]) -> None:
        """The files of a new run; `save` writes its first checkpoint."""

        def work():
            check_empty(self.folder)
            self._tidy()
            save()
            files.write_atomically(self.folder / METRICS_FILE, b"")
            # Last: a run is there from now on.
            files.write_atomically(self.folder / CONFIG_FILE, config.to_json().encode())

        self._main(work)

    def take_up(self, entries: list[dict]) -> None:
        """Go on from the last checkpoint, after these entries of metrics."""

        def work():
            self._last = checkpoints.recorded_checksum(self.folder / LAST)
            self._tidy()
            files.write_atomically(self.folder / METRICS_FILE, "".join(map(line, entries)).encode())

        self._main(work)

    def _tidy(self) -> None:
        """Delete what killed writes left behind."""
        files.remove_leftovers(*(self.folder / name for name in (CONFIG_FILE, METRICS_FILE, LAST, BEST)))

    def check_unchanged(self) -> None:
        """Raises ValueError if another job has written the last checkpoint since this one did, or read it."""

        def work():
            path = self.folder / LAST
            if path.exists() and checkpoints.recorded_checksum(path) != self._last:
                raise ValueError(f"{path} has been written by another process meanwhile: resume the run again")

        self._main(work)

    def save(self, name: str, tensors: dict[str, Tensor], info: dict) -> None:
        """Write a checkpoint, and have the metrics up to it on disk first; called in the main process alone."""
        path = self.folder / METRICS_FILE
        if path.exists():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        found = checkpoints.save(self.folder / name, tensors, info)
        if name == LAST:
            self._last = found

    def log(self, entry: dict) -> None:
        """Add an entry to the metrics; called in the main process alone."""
        path = self.folder / METRICS_FILE
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(line(entry))
        except OSError as error:  # a full disk names no file
            raise OSError(error.errno, error.strerror, str(path)) from error
