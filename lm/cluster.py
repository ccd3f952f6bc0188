"""Map pieces of work over the workers of a Ray cluster, or work on them here; the only module that knows Ray.

A piece of work is an argument of a function that yields results. `flat_map` yields the results of all pieces in the
order of the pieces, wherever they are computed:

    >>> def count(limit: int) -> Iterator[int]:
    ...     yield from range(limit)
    >>> list(flat_map(count, [2, 3], "none"))
    [0, 1, 0, 1, 2]

A function must yield the same results whenever it is called with the same piece: if a worker dies, another one starts
the piece again, and the results that have arrived are skipped. What a function reads from disk on this machine, other
machines read through a `SharedPath`.
"""

import errno
import logging
import os
import re
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lm.atomic import atomic_write
from lm.errors import UserError, quote
from lm.scratch import scratch_folder

Piece = TypeVar("Piece")
Result = TypeVar("Result")

# A worker that is this many results ahead of the ones that are taken waits: 1 GB, with results of 16 MB.
_RESULTS_AHEAD = 64
_PIECES_PER_WORKER = 2  # so that a worker that has finished a piece finds another one
_BLOCK_BYTES = 1 << 25  # in which files are copied
_CONNECT_SECONDS = 10.0
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class WorkerLost(UserError):
    """A worker died, with its machine or alone, before it had finished its piece."""


@dataclass(frozen=True)
class SharedPath:
    """A file or folder on the machine that calls `flat_map`, for the functions that it maps.

    Attributes:
        path: The path, absolute in a cluster.
        node: The id of the cluster's node that has the file; None without a cluster.
    """

    path: Path
    node: str | None = None

    @contextmanager
    def local_file(self) -> Iterator[Path]:
        """The file, or a copy of it on another machine, which exists until the block ends.

        If the block raises a UserError about the copy, its message names the file.

        Raises:
            UserError: The file cannot be read, or the copy cannot be written.
        """
        if self.is_here():
            yield self.path
            return
        with scratch_folder() as folder:
            copy = self.copy_to(folder / self.path.name)
            try:
                yield copy
            except UserError as error:
                raise UserError(str(error).replace(str(copy), str(self.path))) from error

    @contextmanager
    def local_folder(self) -> Iterator[Path]:
        """The folder, or on another machine an empty one, which exists until the block ends."""
        if self.is_here():
            yield self.path
            return
        with scratch_folder() as folder:
            yield folder

    def copy_to(self, path: Path) -> Path:
        """Write a copy of a file of another machine, which comes through Ray's object store in blocks.

        Raises:
            UserError: The file cannot be read, or the copy cannot be written.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(str(self.node), soft=False)
        blocks = ray.remote(_blocks).options(
            num_cpus=0, num_returns="streaming", _generator_backpressure_num_objects=2, scheduling_strategy=there
        )
        references: Any = blocks.remote(self.path)
        with atomic_write(path) as file:
            for reference in references:
                file.write(ray.get(reference).data)
        return path

    def is_here(self) -> bool:
        """Whether this process runs on the machine that has the file."""
        if self.node is None:
            return True
        import ray

        return bool(ray.get_runtime_context().get_node_id() == self.node)


def share(path: Path, cluster: str) -> SharedPath:
    """Return the file or folder at `path` for the pieces of `flat_map`."""
    if cluster == "none":
        return SharedPath(path)
    connect(cluster)
    import ray

    return SharedPath(path.absolute(), ray.get_runtime_context().get_node_id())


def flat_map(
    function: Callable[[Piece], Iterator[Result]],
    pieces: Iterable[Piece],
    cluster: str,
    *,
    num_cpus: int = 1,
    num_gpus: int = 0,
    max_attempts: int = 5,
) -> Generator[Result]:
    """Yield the results of `function` for all pieces, in their order.

    Args:
        function: A function of a module, which yields results that depend on nothing but the piece.
        pieces: The pieces. Only a few more are taken than the workers need.
        cluster: `none`: here and one after the other. `local`: on a Ray cluster that is started for this process on
            this machine. Otherwise the address of a running one.
        num_cpus, num_gpus: What a piece needs of a machine in the cluster.
        max_attempts: How often a piece is started before the loss of its workers is an error. If a disk is full, the
            piece is started on another machine, however often.

    Raises:
        UserError: Ray is not installed, the cluster cannot be reached, no machine of it has enough processors or GPUs,
            or `function` raises this error.
        WorkerLost: The workers of a piece died `max_attempts` times. It is a UserError too.
    """
    if cluster == "none":
        for piece in pieces:
            yield from function(piece)
        return
    connect(cluster)
    yield from _RayMap(function, num_cpus, num_gpus, max_attempts).results(iter(pieces))


_START = "start a node on this machine with: ray start --head, or ray start --address HOST:6379, then set it to auto"


def connect(cluster: str) -> None:
    """Connect this process to a Ray cluster, or start one for `local`, unless it is connected already."""
    # Ray reads these when it is imported: it sends no statistics, and leaves the GPUs of tasks that ask for none alone.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError(
            f"runtime.cluster: {cluster} needs Ray, which is not installed; install it with: pip install '.[cluster]'"
        ) from error
    if ray.is_initialized():
        return
    if "://" in cluster:  # a client outside the cluster, whose files the machines could not read
        raise UserError(f"runtime.cluster: expected none, local, auto or HOST:PORT, got {quote(cluster)}; {_START}")
    package = Path(__file__).parent
    # Such as a token for the hub, which every machine needs that downloads.
    variables = {name: value for name, value in os.environ.items() if name.startswith("HF_")}
    modules = [str(folder) for folder in (package, package.parent / "stages") if folder.is_dir()]
    try:
        # Ray itself would try for minutes.
        if match := re.fullmatch(r"(.+):(\d+)", cluster):
            socket.create_connection((match[1].strip("[]"), int(match[2])), _CONNECT_SECONDS).close()
        ray.init(
            address=cluster,
            runtime_env={"py_modules": modules, "env_vars": variables},
            logging_level=logging.CRITICAL,
            log_to_driver=False,
            include_dashboard=False if cluster == "local" else None,
        )
    except (OSError, ValueError, OverflowError, RuntimeError) as error:
        raise UserError(
            f"runtime.cluster: cannot connect to {cluster} ({' '.join(str(error).split())}); {_START}"
        ) from error


def has_gpus(cluster: str) -> bool:
    """Whether a machine of the cluster has a GPU."""
    connect(cluster)
    import ray

    return bool(ray.cluster_resources().get("GPU"))


def num_cells_at_once(cluster: str) -> int:
    """Return the number of GPUs in a cluster, or of processors if it has none."""
    number = sum(_workers(1, int(has_gpus(cluster))).values())
    import ray

    ray.shutdown()
    return number


def _workers(num_cpus: int, num_gpus: int) -> dict[str, int]:
    """Return how many pieces with these needs each node can work on at the same time, for the nodes that can.

    Raises:
        UserError: There is none.
    """
    import ray

    needs = {kind: need for kind, need in (("CPU", num_cpus), ("GPU", num_gpus)) if need}
    found = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    numbers = {node: int(min(has.get(kind, 0) // need for kind, need in needs.items())) for node, has in found.items()}
    workers = {node: number for node, number in numbers.items() if number}
    if not workers:
        listed = " and ".join(f"{need} {kind}{'s' * (need > 1)}" for kind, need in needs.items())
        raise UserError(
            f"runtime.cluster: no machine of the cluster has {listed}, which a piece of this work needs; add one with: "
            "ray start --address HOST:6379"
        )
    return workers


@dataclass
class _Started:
    """A piece of which results are awaited, how many have been taken, and where it must not run again."""

    piece: Any
    results: Any
    taken: int = 0
    attempts: int = 1
    full_nodes: list[str] = field(default_factory=list)


class _RayMap:
    def __init__(self, function: Callable[[Any], Iterator[Any]], num_cpus: int, num_gpus: int, max_attempts: int):
        import ray

        self._ray, self._function = ray, function
        self._needs = {"num_cpus": num_cpus, "num_gpus": num_gpus}
        self._max_attempts = max_attempts
        self._task = ray.remote(_work)
        self._options = {
            **self._needs,
            "num_returns": "streaming",
            "max_retries": 0,
            "_generator_backpressure_num_objects": _RESULTS_AHEAD,
            "name": function.__name__,
        }
        errors = ray.exceptions
        self._lost: tuple[type[Exception], ...] = (
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.LocalRayletDiedError,
            errors.ObjectLostError,
            errors.OutOfMemoryError,
            errors.OutOfDiskError,
            errors.ObjectStoreFullError,
        )

    def results(self, pieces: Iterator[Any]) -> Iterator[Any]:
        started: deque[_Started] = deque()
        try:
            while True:
                # Asked again for every piece, because machines join and leave.
                wanted = _PIECES_PER_WORKER * sum(_workers(**self._needs).values())
                while len(started) < wanted and (piece := next(pieces, _END)) is not _END:
                    started.append(_Started(piece, self._start(piece)))
                if not started:
                    return
                yield from self._take(started[0])
                started.popleft()
        finally:
            for item in started:
                with suppress(Exception):
                    self._ray.cancel(item.results, force=True)

    def _start(self, piece: Any, skip: int = 0, full_nodes: list[str] | None = None) -> Any:
        options = self._options
        if full_nodes:
            options = {**options, "label_selector": {"ray.io/node-id": f"!in({','.join(full_nodes)})"}}
        return self._task.options(**options).remote(self._function, piece, skip)

    def _take(self, item: _Started) -> Iterator[Any]:
        while True:
            try:
                for reference in item.results:
                    result = self._ray.get(reference)
                    item.taken += 1
                    yield result
                return
            except self._lost as error:
                if item.attempts == self._max_attempts:
                    raise WorkerLost(
                        f"{self._function.__name__}: {item.attempts} workers were lost ({type(error).__name__}); look "
                        "for the reason in the logs of Ray, and run again to continue"
                    ) from error
                item.attempts += 1
            except self._ray.exceptions.RayTaskError as error:
                if not isinstance(error.cause, _DiskFull):
                    raise error.cause from error
                message, node = error.cause.args
                item.full_nodes.append(node)
                if _workers(**self._needs).keys() <= set(item.full_nodes):
                    raise UserError(message) from error
            item.results = self._start(item.piece, item.taken, item.full_nodes)


_END = object()


class _DiskFull(Exception):
    """A disk is full: the message, and the id of the node."""


def _work(function: Callable[[Any], Iterator[Any]], piece: Any, skip: int) -> Iterator[Any]:
    """The task of a worker: yield the results of a piece that have not arrived yet."""
    import ray

    try:
        for index, result in enumerate(function(piece)):
            if index >= skip:
                yield result
    except (UserError, OSError) as error:
        cause: BaseException | None = error
        while isinstance(cause, UserError):
            cause = cause.__cause__
        if isinstance(cause, OSError) and cause.errno in _DISK_FULL:
            raise _DiskFull(f"{os.uname().nodename}: {error}", ray.get_runtime_context().get_node_id()) from error
        raise


def _blocks(path: Path) -> Iterator[np.ndarray]:
    """Yield the bytes of a file in blocks."""
    try:
        with path.open("rb") as file:
            while len(block := np.fromfile(file, np.uint8, _BLOCK_BYTES)):
                yield block
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
