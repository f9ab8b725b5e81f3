"""Signals and the clock end a run on all ranks after the same step, however far apart they are."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.clock import LIMIT, Clock, wait_until
from tests.ranks import run_ranks
from training.config import ConfigError, RunConfig
from training.distributed import World, join_world, leave_world
from training.faults import agreement, stops
from training.faults.agreement import Agreement, Reason
from training.faults.stops import Stops, exit_code, resume_command
from training.launch import LaunchError, read_place

ROOT = Path(__file__).parents[3]


@pytest.fixture
def world():
    yield join_world("cpu")
    leave_world()


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stops, "time", clock)
    monkeypatch.setattr(agreement, "time", clock)
    return clock


@pytest.fixture
def heard(monkeypatch) -> list[int]:
    """The signals that the thread has taken note of."""
    heard, hear = [], Stops._hear

    def listen(self: Stops, number: int) -> None:
        hear(self, number)
        heard.append(number)

    monkeypatch.setattr(Stops, "_hear", listen)
    return heard


def reason_to_stop(stops: Stops) -> str:
    """Take steps until a stop is requested; why it is."""
    return wait_until(lambda: take_step(stops))


def take_step(stops: Stops) -> str | None:
    """A step that is done at once; or the reason why there is none."""
    if reason := stops.requested():
        return reason.text
    return stops.step_done()


@contextmanager
def entered(world: World, **settings: float) -> Iterator[Stops]:
    """Stops that hear signals, of a run's settings, with a step that is done."""
    with Stops() as stops:
        stops.follow(RunConfig(**settings), world)
        with stops.stepping():
            assert take_step(stops) is None
            yield stops


def agreements(world_size: int) -> list[Agreement]:
    store = dist.HashStore()
    return [Agreement(store, rank=rank, world_size=world_size) for rank in range(world_size)]


def train_in_threads(
    rng: random.Random, *, world_size: int, ahead: int, asked_after: int
) -> tuple[list[int], list[str | None]]:
    """Up to 24 steps; by rank how many have begun, and the reason for a stop.

    A step ends when the others have begun the one that is `ahead` before it: as where hosts run
    ahead of their GPUs; 0 is a collective that all wait in. No rank goes more than six steps beyond
    `asked_after` without hearing of the stop.
    """
    ranks, total = agreements(world_size), 24
    begun, reasons = [0] * world_size, [None] * world_size
    asks, pace = rng.choice(ranks), [rng.uniform(0, 0.001) for _ in ranks]
    hears_at = [asked_after + rng.randint(0, 6) for _ in ranks]
    over = threading.Event()

    def train(rank: int) -> None:
        while begun[rank] < total and not reasons[rank]:
            reasons[rank] = ranks[rank].begin_step()
            if reasons[rank]:
                return
            begun[rank] += 1
            time.sleep(pace[rank])
            while min(begun) < begun[rank] - ahead:
                time.sleep(0.0002)
            while begun[rank] >= hears_at[rank] and not ranks[rank].frozen and not over.is_set():
                time.sleep(0.0002)
        ranks[rank].answer()

    def listen() -> None:
        while not over.is_set():
            if max(begun) >= asked_after:
                asks.ask(Reason("time is over", 0))
            for rank in rng.sample(ranks, world_size):
                rank.follow()
            time.sleep(0.0002)

    threads = [
        threading.Thread(target=train, args=(rank,), daemon=True) for rank in range(world_size)
    ]
    listener = threading.Thread(target=listen, daemon=True)
    for thread in (*threads, listener):
        thread.start()
    for thread in threads:
        thread.join(timeout=LIMIT)
    over.set()
    listener.join()
    assert not any(thread.is_alive() for thread in threads), f"no rank waits without end: {begun}"
    return begun, reasons


@pytest.mark.slow
def test_ranks_that_run_ahead_of_one_another_stop_after_the_same_step():
    stopped_after = []
    for seed in range(60):
        rng = random.Random(seed)
        begun, reasons = train_in_threads(
            rng,
            world_size=rng.randint(1, 4),
            ahead=rng.randint(0, 6),
            asked_after=rng.randint(0, 30),
        )
        assert len(set(begun)) == 1, "the same step"
        if begun[0] < 24:
            assert set(reasons) == {Reason("time is over", 0)}
            stopped_after.append(begun[0])
    assert len(stopped_after) > 20
    assert len(set(stopped_after)) > 10, "at many a step"


def test_a_rank_that_cannot_answer_is_named(clock):
    ranks = agreements(3)
    ranks[0].ask(Reason("SIGTERM on rank 0", 143))
    ranks[0].follow()
    ranks[2].follow()
    clock.now += agreement.ANSWER
    ranks[0].follow()
    clock.now += 0.1
    with pytest.raises(TimeoutError, match=r"no answer from ranks \[1\]"):
        ranks[0].follow()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1], ids=lambda n: n.name
)
def test_a_signal_is_a_request_inside_and_what_it_was_outside(number, world, monkeypatch):
    before = signal.getsignal(number)
    with entered(world) as running:
        assert take_step(running) is None
        os.kill(os.getpid(), number)
        assert reason_to_stop(running) == f"{number.name} on rank 0"
        assert reason_to_stop(running), "it stays requested"
        assert running.requested().exit_code == 128 + number
    assert signal.getsignal(number) is before
    assert not any(thread.name.startswith("stops") for thread in threading.enumerate())
    with entered(world) as again:
        looks, follow = [], again._agreement.follow
        monkeypatch.setattr(again._agreement, "follow", lambda: follow() or looks.append(1))
        wait_until(lambda: len(looks) > 2)
        assert take_step(again) is None, "another run is not meant"


def test_one_press_that_arrives_twice_does_not_quit(world, clock, heard):
    """From the terminal, and from a launcher that passes on what it got itself."""
    with entered(world) as running:
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(lambda: len(heard) == 1)
        clock.now += stops._ECHO
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(lambda: len(heard) == 2)
        assert reason_to_stop(running) == "SIGINT on rank 0"


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1], ids=lambda n: n.name
)
def test_only_a_second_press_quits(number, world, clock, heard, monkeypatch):
    """A terminal is closed, a container is stopped while the run is being saved."""
    quits = []
    monkeypatch.setattr(Stops, "_quit", lambda self, why, code: quits.append(why))
    with entered(world) as running:
        for count, sent in enumerate((signal.SIGINT, number, number), start=1):
            os.kill(os.getpid(), sent)
            wait_until(lambda count=count: len(heard) == count)
            clock.now += stops._ECHO + 0.1
        assert reason_to_stop(running) == "SIGINT on rank 0"
        assert quits == []
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(lambda: quits)


@pytest.mark.parametrize("reason", [None, Reason("SIGTERM on rank 0", 143)])
def test_a_second_press_after_all_is_saved_changes_nothing(
    reason, world, clock, heard, monkeypatch, capfd
):
    """What the command returns is what it would have returned."""
    exits = []
    monkeypatch.setattr(Stops, "_exit", lambda self, status, why, code: exits.append(code))
    with Stops() as running:
        running.follow(RunConfig(), world)
        with suppress(stops.Stopped), running.stepping():
            if reason:
                raise stops.Stopped(reason)
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(lambda: heard)
        clock.now += stops._ECHO + 0.1
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(lambda: exits)
    assert exits == [143 if reason else 0]
    assert capfd.readouterr().err == "interrupted twice: quitting at once; the run is saved\n"


@pytest.mark.parametrize("rank", ["", "abc", "-1"])
def test_a_rank_that_is_no_number_is_for_others_to_refuse(rank, monkeypatch):
    monkeypatch.setenv("RANK", rank)
    with Stops():
        pass
    with pytest.raises(LaunchError, match=f"RANK='{rank}': expected a number"):
        read_place(os.environ | {"WORLD_SIZE": "1"}, gpus=0, address=False)


def test_a_hang_up_that_is_ignored_stays_so(world, heard):
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with entered(world) as running:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGUSR1)
            assert reason_to_stop(running) == "SIGUSR1 on rank 0"
        assert signal.SIGHUP not in heard
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("restarts", "code"), [(None, 143), ("0", 143), ("3", 0)])
def test_a_shell_sees_a_stop_where_a_launcher_does_not_take_it_for_a_death(restarts, code):
    environment = {} if restarts is None else {"TORCHELASTIC_MAX_RESTARTS": restarts}
    assert exit_code(signal.SIGTERM, environment) == code


def test_the_launcher_has_died(world, monkeypatch):
    """Whoever adopts the rank is its parent then."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
    with entered(world) as running:
        assert take_step(running) is None
        monkeypatch.setattr(os, "getppid", lambda: 1)
        assert reason_to_stop(running) == "the launcher of rank 0 is gone"
        assert running.requested().exit_code == stops.NO_ANSWER_EXIT_CODE


def test_a_store_that_is_frozen_with_its_rank_holds_nobody(world, clock, monkeypatch):
    """As where rank 0's machine hangs."""
    quits, thawed = [], threading.Event()
    monkeypatch.setattr(Stops, "_quit", lambda self, why, code: quits.append((why, code)))
    with entered(world) as running:
        monkeypatch.setattr(running._agreement, "ask", lambda reason: thawed.wait())
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: running._reason)
        clock.now += 2 * agreement.ANSWER + 1
        wait_until(lambda: quits)
        thawed.set()
    assert quits[0] == ("SIGTERM on rank 0, but rank 0 does not answer", stops.NO_ANSWER_EXIT_CODE)


def test_what_follows_the_steps_is_finished(world, heard):
    """The last checkpoint is being written, curves are drawn."""
    with Stops() as running:
        running.follow(RunConfig(), world)
        with running.stepping():
            assert take_step(running) is None
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: heard)
        assert not running._agreement.frozen


def test_the_time_is_over(world, clock):
    with entered(world, max_hours=0.5) as running:
        clock.now += 1800
        assert take_step(running) is None
        clock.now += 1
        assert reason_to_stop(running) == "run.max_hours=0.5 is reached"


def test_a_time_below_zero_is_refused():
    with pytest.raises(ConfigError, match=r"run\.max_hours=-1: expected at least 0"):
        RunConfig(max_hours=-1)


STUCK = """
import sys
from dataclasses import replace
from datetime import timedelta
import torch.distributed as dist
from training.faults import agreement, stops
from training.config import RunConfig
from training.distributed import join_world
agreement.ANSWER, stops._ECHO = 0.3, 0
hear = stops.Stops._hear

def listen(self, number):
    hear(self, number)
    print(number, flush=True)

stops.Stops._hear = listen
with stops.Stops() as running:
    if world_size := int(sys.argv[1]):
        running.follow(RunConfig(), replace(join_world("cpu"), world_size=world_size))
    if sys.argv[2] == "trained":
        running.requested()
        running.step_done()
    print("ready", flush=True)
    dist.HashStore().wait(["never"], timedelta(hours=1))  # as in a collective: not in Python
"""


@contextmanager
def stuck(*, world_size: int, state: str = "trained") -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for what never comes, of as many ranks, the others dead; 0: not met."""
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(world_size), state],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()


@pytest.mark.slow
def test_a_second_press_quits_at_once_even_out_of_a_collective_that_hangs():
    with stuck(world_size=1) as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"%d\n" % signal.SIGINT, "it goes on"
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=LIMIT)
        assert process.returncode == 130
        assert b"interrupted twice: quitting without saving" in message


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [0, 1])
def test_before_a_step_is_done_a_stop_ends_even_what_hangs(world_size):
    with stuck(world_size=world_size, state="fresh") as process:
        process.send_signal(signal.SIGTERM)
        _, message = process.communicate(timeout=LIMIT)
        assert process.returncode == 143
        assert message == (
            b"stopped: SIGTERM on rank 0, before a step was done: nothing was to be saved\n"
        )


@pytest.mark.slow
def test_what_waits_for_a_dead_rank_quits_when_asked_to_stop():
    """As torchrun tells those that are left; it would kill them only after thirty seconds."""
    with stuck(world_size=2) as process:
        process.send_signal(signal.SIGTERM)
        _, message = process.communicate(timeout=LIMIT)
        assert process.returncode == stops.NO_ANSWER_EXIT_CODE
        assert (
            b"SIGTERM on rank 0, but no answer from ranks [1] in 0.3 seconds: quitting" in message
        )


def train_until_stopped(world: World) -> tuple[int, str, list[int]]:
    """Steps begun, the reason, and the steps that a collective saw; rank 1 is sent a signal."""
    steps, seen = 0, []
    with entered(world) as running:
        while not (reason := take_step(running)):
            steps += 1
            total = torch.tensor([steps])
            dist.all_reduce(total)
            seen.append(total.item())
            if world.rank == 1 and steps == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.002 * world.rank)
    return steps, reason, seen


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_after_the_same_step(tmp_path):
    results = run_ranks(train_until_stopped, world_size=2, folder=tmp_path)
    assert all(result == results[0] for result in results)
    steps, reason, seen = results[0]
    assert reason == "SIGTERM on rank 1"
    assert seen == [2 * step for step in range(1, steps + 1)], "nobody was out of step"


def test_the_command_that_goes_on():
    argv = ["train_dist.py", "configs/demo.py", "run.output=my runs"]
    quoted = "train_dist.py configs/demo.py 'run.output=my runs'"
    assert resume_command(argv, {}) == f"python {quoted}"
    ranks = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}
    assert resume_command(argv, ranks) == f"torchrun --standalone --nproc_per_node=2 {quoted}"
    several = resume_command(argv, ranks | {"GROUP_WORLD_SIZE": "4"})
    assert several.startswith(f"torchrun --nnodes=4 --nproc_per_node=2 {quoted}, on every machine")


def test_the_command_that_goes_on_works_where_the_environment_is_not_active(tmp_path, monkeypatch):
    """As after `make demo`, which does not need it to be."""
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    for name in ("python", "torchrun"):
        (programs / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    ranks = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}
    active, other = {"PATH": str(programs)}, {"PATH": "/usr/bin"}
    assert resume_command(["t.py"], active) == "python t.py"
    assert resume_command(["t.py"], other) == f"{programs / 'python'} t.py"
    monkeypatch.chdir(tmp_path)
    assert resume_command(["t.py"], other | ranks).startswith(".venv/bin/torchrun --standalone ")


def test_the_command_that_goes_on_does_not_begin_where_the_run_began():
    command = resume_command(["train_dist.py", "c.py", "run.resume=never", "optim.lr=0.2"], {})
    assert command == "python train_dist.py c.py optim.lr=0.2"


@pytest.mark.parametrize("option", ["--local-rank=1", "--local_rank=1"])
def test_the_command_that_goes_on_does_not_name_the_place_of_a_rank(option):
    ranks = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}
    command = resume_command(["train_dist.py", option, "c.py"], ranks)
    assert command == "torchrun --standalone --nproc_per_node=2 train_dist.py c.py"
