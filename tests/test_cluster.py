"""Pieces of work here and on a Ray cluster of two nodes, each with one processor."""

import errno
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lm.cluster import SharedPath, WorkerLost, flat_map, share
from lm.errors import UserError

LIMITS = [2, 0, 3, 1, 2, 3, 1, 2]
EXPECTED = [(limit, index) for limit in LIMITS for index in range(limit)]


def count(limit: int) -> Iterator[tuple[int, int, str, int]]:
    """Yield `limit` results, each with the node and the process that computed it."""
    for index in range(limit):
        time.sleep(0.2)
        yield limit, index, node(), os.getpid()


def node() -> str:
    ray = pytest.importorskip("ray")
    return ray.get_runtime_context().get_node_id()


def read(piece: SharedPath) -> Iterator[tuple[str, bytes, bool]]:
    time.sleep(0.5)
    with piece.local_file() as path:
        yield node(), path.read_bytes(), path == piece.path


def fail(number: int) -> Iterator[int]:
    yield number
    if number == 2:
        raise UserError("file 2: cannot be read")


def fail_without_space(full: list[str]) -> Iterator[str]:
    time.sleep(0.2)
    if node() in full:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    yield node()


def end(number: int) -> Iterator[int]:
    yield number
    os._exit(1)


def test_without_a_cluster_pieces_are_worked_on_here():
    def double(number: int) -> Iterator[int]:
        yield 2 * number
        yield os.getpid()

    assert list(flat_map(double, iter([1, 2]), "none")) == [2, os.getpid(), 4, os.getpid()]


def test_pieces_are_taken_when_they_are_needed():
    taken = []

    def pieces() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            yield number

    results = flat_map(lambda number: iter([number]), pieces(), "none")
    assert [next(results), next(results)] == [0, 1] and taken == [0, 1]


def test_a_shared_path_without_a_cluster_is_the_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("One.")
    with share(Path("a.txt"), "none").local_file() as path:
        assert path == Path("a.txt")
    with share(Path("."), "none").local_folder() as path:
        assert path == Path(".")


def test_a_missing_ray_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"^runtime\.cluster: local needs Ray, which is not installed; install it with"):
        list(flat_map(count, [1], "local"))


def test_an_address_of_a_client_is_refused(monkeypatch):
    monkeypatch.setattr(pytest.importorskip("ray"), "is_initialized", lambda: False)
    with pytest.raises(UserError, match=r"^runtime\.cluster: expected none, local, auto or HOST:PORT, got 'ray://"):
        list(flat_map(count, [1], "ray://host:10001"))


def test_an_error_about_a_copy_names_the_file(monkeypatch):
    def copy_to(shared: SharedPath, path: Path) -> Path:
        path.write_bytes(b"\xff")
        return path

    monkeypatch.setattr(SharedPath, "is_here", lambda shared: False)
    monkeypatch.setattr(SharedPath, "copy_to", copy_to)
    with (
        pytest.raises(UserError, match=r"^/data/train-00007\.txt: not UTF-8$"),
        SharedPath(Path("/data/train-00007.txt"), "node").local_file() as path,
    ):
        assert path.read_bytes() == b"\xff"
        raise UserError(f"{path}: not UTF-8")
    assert not path.parent.exists()


def disconnect() -> None:
    import ray

    ray.shutdown()


def other_node(cluster):
    """The node that is not the head; a new one if the last test has removed it."""
    others = list(cluster.worker_nodes)
    return others[0] if others else cluster.add_node(num_cpus=1)


def test_two_nodes_yield_the_results_in_order(two_nodes):
    results = list(flat_map(count, LIMITS, two_nodes.address))
    assert [result[:2] for result in results] == EXPECTED
    assert len({result[2] for result in results}) == 2


@pytest.mark.slow
def test_a_file_reaches_the_other_node(two_nodes, tmp_path):
    content = np.random.default_rng(1).bytes(100_000)
    (tmp_path / "a.bin").write_bytes(content)
    piece = share(tmp_path / "a.bin", two_nodes.address)
    results = list(flat_map(read, [piece] * 6, two_nodes.address))
    assert {found for _, found, _ in results} == {content}
    assert {(where == piece.node, is_original) for where, _, is_original in results} == {(True, True), (False, False)}


@pytest.mark.slow
def test_a_node_that_is_killed(two_nodes):
    killed, other = False, other_node(two_nodes)
    results = []
    for result in flat_map(count, LIMITS * 3, two_nodes.address):
        results.append(result)
        if not killed and result[2] == other.node_id:
            two_nodes.remove_node(other, allow_graceful=False)
            killed = True
    assert killed
    assert [result[:2] for result in results] == EXPECTED * 3


@pytest.mark.slow
def test_a_node_whose_agent_is_killed(two_nodes):
    """Ray then ends the node, and reports its pieces in another way than those of a node that was killed itself."""
    psutil = pytest.importorskip("psutil")
    killed, other = False, other_node(two_nodes)
    raylet = psutil.Process(other.all_processes["raylet"][0].process.pid)
    results = []
    for result in flat_map(count, LIMITS * 3, two_nodes.address):
        results.append(result)
        if not killed and result[2] == other.node_id:
            agents = [child for child in raylet.children() if "RuntimeEnvAgent" in "".join(child.cmdline())]
            agents[0].kill()
            killed = True
    assert killed
    assert [result[:2] for result in results] == EXPECTED * 3
    two_nodes.remove_node(other)


@pytest.mark.slow
def test_a_node_that_joins_late(two_nodes):
    for other in list(two_nodes.worker_nodes):
        two_nodes.remove_node(other)
    joined, results = None, []
    for result in flat_map(count, LIMITS * 5, two_nodes.address):
        results.append(result)
        joined = joined or two_nodes.add_node(num_cpus=1)
    assert [result[:2] for result in results] == EXPECTED * 5
    assert joined.node_id in {result[2] for result in results}


@pytest.mark.slow
def test_a_worker_that_is_killed(two_nodes):
    other_node(two_nodes)
    killed, results = set(), []
    for result in flat_map(count, LIMITS * 3, two_nodes.address):
        results.append(result)
        if len(killed) < 3 and result[3] not in killed and result[0] > 1:
            os.kill(result[3], signal.SIGKILL)
            killed.add(result[3])
    assert len(killed) == 3
    assert [result[:2] for result in results] == EXPECTED * 3


@pytest.mark.slow
def test_an_error_names_its_piece_and_ends_the_work(two_nodes):
    results = flat_map(fail, range(5), two_nodes.address)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match=r"^file 2: cannot be read$"):
        next(results)


@pytest.mark.slow
def test_a_worker_that_always_dies(two_nodes):
    with pytest.raises(WorkerLost, match=r"^end: 2 workers were lost \(WorkerCrashedError\); look for"):
        list(flat_map(end, [1], two_nodes.address, max_attempts=2))


@pytest.mark.slow
def test_a_full_disk_on_one_node(two_nodes):
    other = other_node(two_nodes)
    # Not even a piece that is started only once is lost with the disk.
    results = list(flat_map(fail_without_space, [[other.node_id]] * 6, two_nodes.address, max_attempts=1))
    assert len(results) == 6 and other.node_id not in results


@pytest.mark.slow
def test_a_full_disk_on_all_nodes(two_nodes):
    full = [other_node(two_nodes).node_id, two_nodes.head_node.node_id]
    with pytest.raises(UserError, match=r"No space left on device"):
        list(flat_map(fail_without_space, [full], two_nodes.address))


@pytest.mark.slow
def test_work_that_no_node_can_do(two_nodes):
    with pytest.raises(UserError, match=r"no machine of the cluster has 1 CPU and 1 GPU, which a piece of this"):
        list(flat_map(count, [1], two_nodes.address, num_gpus=1))


@pytest.mark.slow
def test_an_address_without_a_cluster(two_nodes):
    disconnect()
    with pytest.raises(UserError, match=r"^runtime\.cluster: cannot connect to 127\.0\.0\.1:1 \("):
        list(flat_map(count, [1], "127.0.0.1:1"))
