"""Real ranks inside a test: processes of one DeepSpeed process group, kept alive between tests.

Starting DeepSpeed takes longer than most trainings of a test. So a pool of processes starts once and runs whatever
function a test gives it. A test alone pays for what it needs; a rank that hangs or dies costs its own test only.
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest

Scenario = Callable[..., Path]
TIMEOUT = 300.0  # seconds that one function may take


def _serve(connection: Connection, rank: int, world: int, port: int) -> None:
    """Join the group, then run functions until there are no more."""
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in environment.items()}, MASTER_PORT=str(port))
    import torch

    from fast_electra.training.engines import start_ranks

    torch.set_num_threads(1)
    ranks = start_ranks()
    connection.send(None)
    while (task := connection.recv()) is not None:
        function, arguments = task
        try:
            function(*arguments, ranks)
            connection.send(None)
        except BaseException:
            connection.send(traceback.format_exc())
    os._exit(0)  # gloo's threads may abort a regular end


class Pool:
    """`world` processes that run a function together."""

    def __init__(self, world: int) -> None:
        self.world = world
        self._processes: list[Any] = []
        self._connections: list[Connection] = []

    def run(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call `function(*arguments, ranks)` on every rank. A failure on any of them is an AssertionError here."""
        if not self._processes:
            self._start()
        for connection in self._connections:
            connection.send((function, arguments))
        self._collect(function.__name__)

    def _start(self) -> None:
        from conftest import free_port

        context, port = multiprocessing.get_context("spawn"), free_port()
        for rank in range(self.world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, self.world, port), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)
        self._collect("start_ranks")

    def _collect(self, what: str) -> None:
        """Wait for an answer of every rank. After a failure the group may be out of step, so it ends."""
        waiting = list(self._connections)
        while waiting:
            ready = wait(waiting, TIMEOUT)
            failure = None if ready else f"took more than {TIMEOUT} s"
            for connection in ready:
                waiting.remove(connection)  # type: ignore[arg-type]
                try:
                    failure = connection.recv() or failure  # type: ignore[union-attr]
                except EOFError:
                    failure = failure or "a rank died"
            if failure:
                self.stop()
                raise AssertionError(f"{what} on {self.world} ranks: {failure}")

    def stop(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._connections = [], []


@pytest.fixture(scope="session")
def pools() -> Iterator[dict[int, Pool]]:
    """Pools of one and of two ranks; they start when first used."""
    pools = {world: Pool(world) for world in (1, 2)}
    yield pools
    for pool in pools.values():
        pool.stop()


@pytest.fixture(scope="session")
def scenario(tiny_corpus: Any, tmp_path_factory: pytest.TempPathFactory, pools: dict[int, Pool]) -> Scenario:
    """`scenario(name, *arguments, world=2)` runs one unless it ran before, and returns the folder of its runs."""
    import scenarios  # here: it imports DeepSpeed

    folders = {world: tmp_path_factory.mktemp(f"{world}_ranks") for world in pools}
    done: dict[tuple[object, ...], Exception | AssertionError | None] = {}

    def run(name: str, *arguments: str, world: int = 2) -> Path:
        if name in scenarios.NEEDS:
            run(scenarios.NEEDS[name], world=world)
        if name == "method" and scenarios.METHODS.get(arguments[0], ("",))[0] == "tiny":
            run("method", "auxiliary", world=world)
        folder = folders[world] / ("methods" if name == "method" else "")
        folder.mkdir(exist_ok=True)
        key = (name, arguments, world)
        if key not in done:
            done[key] = None
            try:
                pools[world].run(getattr(scenarios, name), *arguments, tiny_corpus.shards.parent, folder)
            except AssertionError as error:
                done[key] = error
        if error := done[key]:
            raise error
        return folder

    return run
