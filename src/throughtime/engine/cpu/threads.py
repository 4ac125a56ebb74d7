"""Running a kernel on PyTorch's own threads.

PyTorch's operations run on the threads of an OpenMP library, which look out for work for a while after each of them.
Threads of our own would have to share the cores with those that are looking; so kernels run on the same ones. At a
barrier within a kernel, a thread looks a bounded number of times and then sleeps in the system (Linux futex), so that
it does not hold a core that others need.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from throughtime.engine.cpu.emit import Function, Module, Target
from throughtime.engine.cpu.machine import Code, assemble
from throughtime.engine.cpu.once import once

LOOKS = 10_000  # before a waiting thread goes to sleep: longer than it takes to wake one up, else they do so in turn
LOOK = 12e-9  # seconds, about
FUTEX_SYSCALL = {"x86_64": 202, "aarch64": 98}
LINE = 8  # words of a cache line
ARRIVED, ROUND, SLEEPERS, SLEPT, OVERSLEPT = 0, LINE, 2 * LINE, 2 * LINE + 1, 2 * LINE + 2
SLEEP = 500_000  # nanoseconds after which a sleeping thread looks again
WAITED = 0.25  # of a run's time before and in such sleeps: somebody else has the cores
JUDGED = 0.05  # seconds of runs that are judged together
LEAST_REST, LONGEST_REST = 0.1, 4.0  # seconds without meetings then; twice as long each time that it was no good
MEETING_WORDS = 3 * LINE

Kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
_forked = False


def _after_fork() -> None:
    """OpenMP's threads do not live on in a forked process, and GNU's library would wait for them."""
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def openmp() -> ctypes.CDLL | None:
    """The OpenMP library that PyTorch has loaded; None where it has none that we can call."""
    if sys.platform != "linux" or os.uname().machine not in FUTEX_SYSCALL:
        return None
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        return ctypes.CDLL(str(path))
    return None


def hands() -> int:
    """How many threads a kernel may have."""
    if _forked or openmp() is None:
        return 1
    return torch.get_num_threads()


class Crowd:
    """Whether other processes hold the cores.

    Threads that meet all wait for the one that has lost its core, and two that each have half of one are seldom there
    together. So for a while after that was seen, one thread does the work, and takes
    as long as its share of a core says. One long wait in a short run is no crowd: runs are judged together, until they
    have taken `JUDGED` seconds.
    """

    def __init__(self) -> None:
        self.until = 0.0
        self.rest = 0.0
        self.waited = self.ran = 0.0  # seconds, of the runs to be judged

    def here(self) -> bool:
        return time.monotonic() < self.until

    def seen(self, waited: float, seconds: float) -> None:
        """Takes note of a run with meetings: for how long a thread waited before and in its sleeps, of how long."""
        self.waited, self.ran = self.waited + waited, self.ran + seconds
        if self.ran < JUDGED:
            return
        crowded = self.waited > WAITED * self.ran
        self.rest = min(LONGEST_REST, max(LEAST_REST, 2 * self.rest, 4 * seconds)) if crowded else 0.0
        self.until = time.monotonic() + self.rest
        self.waited = self.ran = 0.0


crowd = Crowd()


def hands_to_meet() -> int:
    """How many threads a kernel may have that meet after every statement."""
    return 1 if crowd.here() else hands()


@dataclass(frozen=True)
class Work:
    """A compiled function at ``kernel``, to be called with (words, thread, threads) on so many threads."""

    kernel: int
    words: ctypes.Array
    hands: int


class Team:
    """Places in the words that a team of threads is told its work by."""

    WORKS, HANDS, HEAD = range(3)
    KERNEL, WORDS, FIRST, SHARE, EACH = range(5)  # of each work, behind the head


def run(works: list[Work]) -> None:
    """Runs compiled functions side by side, each on threads of its own.

    Word 0 of each is for the kernel's address, word 1 for that of its meeting point's memory; both are set here.
    """
    if len(works) == 1 and works[0].hands == 1:
        Kernel(works[0].kernel)(ctypes.addressof(works[0].words), 0, 1)
        return
    meetings = (ctypes.c_int64 * (MEETING_WORDS * len(works) + LINE))()
    meeting = (ctypes.addressof(meetings) + 63) // 64 * 64
    team = (ctypes.c_int64 * (Team.HEAD + Team.EACH * len(works)))()
    first = 0
    for k, work in enumerate(works):
        work.words[0], work.words[1] = work.kernel, meeting + 8 * MEETING_WORDS * k
        place = Team.HEAD + Team.EACH * k
        team[place + Team.KERNEL], team[place + Team.WORDS] = work.kernel, ctypes.addressof(work.words)
        team[place + Team.FIRST], team[place + Team.SHARE] = first, work.hands
        first += work.hands
    team[Team.WORKS], team[Team.HANDS] = len(works), first
    library = openmp()
    assert library is not None
    began = time.monotonic()
    library.GOMP_parallel(ctypes.c_void_p(_entrance()), ctypes.c_void_p(ctypes.addressof(team)), first, 0)
    if any(work.hands > 1 for work in works):
        start = (meeting - ctypes.addressof(meetings)) // 8
        places = [start + MEETING_WORDS * k for k in range(len(works))]
        waited = [meetings[at + SLEPT] * LOOKS * LOOK + meetings[at + OVERSLEPT] * SLEEP * 1e-9 for at in places]
        crowd.seen(max(waited), time.monotonic() - began)


@once
def _entrance() -> int:
    return _entrance_code().address("enter")


@once
def _entrance_code() -> Code:
    """``enter(team)``: what each thread of a team calls; asks for its number and does its share of the work.

    Where the system gives fewer threads than asked for, the first does all of it.
    """
    library = openmp()
    assert library is not None
    module = Module(Target("float", 16))
    names = {"omp_get_thread_num": "throughtime_thread", "omp_get_num_threads": "throughtime_threads"}
    with module.function("enter", "ptr %team") as f:

        def word(place: str) -> str:
            return f.let(f"load i64, ptr {f.at('%team', place, 'i64')}")

        asked = [f.call(name, "i32") for name in names.values()]
        number, threads = (f.let(f"sext i32 {value} to i64") for value in asked)
        complete = f.compare("eq", threads, word(str(Team.HANDS)))
        with f.loop("0", word(str(Team.WORKS))) as k:
            place = f.add(f.mul(k, Team.EACH), Team.HEAD)
            first = f.select(complete, word(f.add(place, Team.FIRST)), "0")
            share = f.select(complete, word(f.add(place, Team.SHARE)), "1")
            own = f.sub(number, first)
            after, before = f.compare("sge", own, "0"), f.compare("slt", own, share)
            with f.when(f.let(f"and i1 {after}, {before}")):
                kernel, words = (
                    f.let(f"inttoptr i64 {word(f.add(place, at))} to ptr") for at in (Team.KERNEL, Team.WORDS)
                )
                f.line(f"call void {kernel}(ptr {words}, i64 {own}, i64 {share})")
    return assemble(
        module.text(),
        {name: ctypes.cast(getattr(library, c), ctypes.c_void_p).value or 0 for c, name in names.items()},
    )


def emit_barrier(module: Module) -> None:
    """``barrier(meeting, hands)``: goes on when all hands have come."""
    if openmp() is None:  # one thread has nobody to meet
        with module.function("barrier", "ptr %meeting, i64 %hands", private=True):
            return
    with (
        module.function("barrier", "ptr %meeting, i64 %hands", private=True) as f,
        f.when(f.compare("sgt", "%hands", 1)),
    ):
        round_word = f.at("%meeting", ROUND, "i64")
        arrived = f.at("%meeting", ARRIVED, "i64")
        sleepers = f.at("%meeting", SLEEPERS, "i64")
        now = _atomic_load(f, round_word)
        before = _atomic_add(f, arrived, 1)
        last = f.compare("eq", f.add(before, 1), "%hands")
        with f.when(last):
            f.line(f"store atomic i64 0, ptr {arrived} seq_cst, align 8")
            _atomic_add(f, round_word, 1)
            with f.when(f.compare("sgt", _atomic_load(f, sleepers), 0)):
                _futex(f, round_word, 129, "2147483647")  # wake all, private
        with f.when(f.let(f"xor i1 {last}, true")):
            _wait_while(f, round_word, now, sleepers)


def _wait_while(f: Function, address: str, old: str, sleepers: str) -> None:
    """Waits until the word at the address is no longer ``old``."""
    left = f.slot("i64")
    f.set(left, "i64", str(LOOKS))
    limit = f.slot("[2 x i64]")  # seconds, nanoseconds
    f.line(f"store [2 x i64] [i64 0, i64 {SLEEP}], ptr {limit}")
    with f.repeat_while() as forever:
        forever.unless(f.compare("eq", _atomic_load(f, address), old))
        f.set(left, "i64", f.sub(f.get(left, "i64"), 1))
        _pause(f)
        with f.when(f.compare("slt", f.get(left, "i64"), 0)):
            _atomic_add(f, sleepers, 1)
            _atomic_add(f, f.at(sleepers, SLEPT - SLEEPERS, "i64"), 1)
            _futex(f, address, 128, f.let(f"and i64 {old}, 4294967295"), limit)  # wait, private
            _atomic_add(f, sleepers, -1)
            with f.when(f.compare("eq", _atomic_load(f, address), old)):
                _atomic_add(f, f.at(sleepers, OVERSLEPT - SLEEPERS, "i64"), 1)


def _atomic_load(f: Function, address: str) -> str:
    return f.let(f"load atomic i64, ptr {address} seq_cst, align 8")


def _atomic_add(f: Function, address: str, amount: int) -> str:
    """Adds, and returns what stood there before."""
    return f.let(f"atomicrmw add ptr {address}, i64 {amount} seq_cst")


def _futex(f: Function, address: str, operation: int, value: str, limit: str = "null") -> None:
    number = FUTEX_SYSCALL[os.uname().machine]
    f.module.declarations["syscall"] = "declare i64 @syscall(i64, ...)"
    f.let(
        f"call i64 (i64, ...) @syscall(i64 {number}, ptr {address}, i64 {operation}, i64 {value}, "
        f"ptr {limit}, ptr null, i64 0)"
    )


def _pause(f: Function) -> None:
    """Tells the processor that this thread is only waiting."""
    if os.uname().machine == "x86_64":
        f.module.declare("llvm.x86.sse2.pause", "void", "")
        f.run("llvm.x86.sse2.pause")
    else:
        f.module.declare("llvm.aarch64.hint", "void", "i32")
        f.run("llvm.aarch64.hint", ("i32", "1"))
