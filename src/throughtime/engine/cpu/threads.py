"""Worker threads that wait inside compiled code, so that handing out work costs about a microsecond.

A waiting thread looks for news a bounded number of times and then sleeps in the kernel (Linux futex), so that it does
not hold a core that others need. Python makes the threads; they stay in compiled code.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading

from throughtime.engine.cpu.emit import Function, Module, Target
from throughtime.engine.cpu.machine import Code, assemble

LOOKS = 2000  # before a waiting thread goes to sleep: some tens of microseconds
FUTEX_SYSCALL = {"x86_64": 202, "aarch64": 98}

# Words (i64, one cache line apart) of a meeting point and of a pool
LINE = 8
ARRIVED, ROUND, SLEEPERS = 0, LINE, 2 * LINE
NEWS, NEWS_SLEEPERS, DONE, DONE_SLEEPERS, WORK, ARGUMENTS, HANDS = (k * LINE for k in range(3, 10))
WORDS = 10 * LINE


def threads_supported() -> bool:
    """Futexes are Linux's; elsewhere kernels run on one thread, and `throughtime.explain` says so."""
    return sys.platform == "linux" and os.uname().machine in FUTEX_SYSCALL


def _word(f: Function, base: str, word: int) -> str:
    return f.at(base, word, "i64")


def _atomic_load(f: Function, address: str) -> str:
    return f.let(f"load atomic i64, ptr {address} seq_cst, align 8")


def _atomic_add(f: Function, address: str, amount: int) -> str:
    """Adds, and returns what stood there before."""
    return f.let(f"atomicrmw add ptr {address}, i64 {amount} seq_cst")


def _wait_while(f: Function, address: str, old: str, sleepers: str) -> None:
    """Waits until the word at the address is no longer ``old``."""
    left = f.slot("i64")
    f.set(left, "i64", str(LOOKS))
    with f.repeat_while() as forever:
        forever.unless(f.compare("eq", _atomic_load(f, address), old))
        f.set(left, "i64", f.sub(f.get(left, "i64"), 1))
        _pause(f)
        with f.when(f.compare("slt", f.get(left, "i64"), 0)):
            if threads_supported():
                _atomic_add(f, sleepers, 1)
                _futex(f, address, 128, f.let(f"and i64 {old}, 4294967295"))  # wait, private
                _atomic_add(f, sleepers, -1)


def _wake(f: Function, address: str, sleepers: str) -> None:
    if threads_supported():
        with f.when(f.compare("sgt", _atomic_load(f, sleepers), 0)):
            _futex(f, address, 129, "2147483647")  # wake all, private


def _futex(f: Function, address: str, operation: int, value: str) -> None:
    number = FUTEX_SYSCALL[os.uname().machine]
    f.module.declarations["syscall"] = "declare i64 @syscall(i64, ...)"
    f.let(
        f"call i64 (i64, ...) @syscall(i64 {number}, ptr {address}, i64 {operation}, i64 {value}, "
        f"ptr null, ptr null, i64 0)"
    )


def _pause(f: Function) -> None:
    """Tells the processor that this thread is only waiting."""
    if os.uname().machine == "x86_64":
        f.module.declare("llvm.x86.sse2.pause", "void", "")
        f.run("llvm.x86.sse2.pause")
    else:
        f.module.declare("llvm.aarch64.hint", "void", "i32")
        f.run("llvm.aarch64.hint", ("i32", "1"))


def emit_barrier(module: Module) -> None:
    """``barrier(pool, hands)``: goes on when all hands have come."""
    with module.function("barrier", "ptr %pool, i64 %hands", private=True) as f, f.when(f.compare("sgt", "%hands", 1)):
        round_word = _word(f, "%pool", ROUND)
        arrived = _word(f, "%pool", ARRIVED)
        now = _atomic_load(f, round_word)
        before = _atomic_add(f, arrived, 1)
        last = f.compare("eq", f.add(before, 1), "%hands")
        with f.when(last):
            f.line(f"store atomic i64 0, ptr {arrived} seq_cst, align 8")
            _atomic_add(f, round_word, 1)
            _wake(f, round_word, _word(f, "%pool", SLEEPERS))
        with f.when(f.let(f"xor i1 {last}, true")):
            _wait_while(f, round_word, now, _word(f, "%pool", SLEEPERS))


def _emit_pool(module: Module) -> None:
    # args: pool, thread number
    with module.function("serve", "ptr %args") as f:
        pool = f.let(f"load ptr, ptr {_word(f, '%args', 0)}")
        number = f.let(f"load i64, ptr {_word(f, '%args', 1)}")
        seen = f.slot("i64")
        f.set(seen, "i64", f.let(f"load i64, ptr {_word(f, '%args', 2)}"))
        news = _word(f, pool, NEWS)
        with f.repeat_while() as forever:
            _wait_while(f, news, f.get(seen, "i64"), _word(f, pool, NEWS_SLEEPERS))
            f.set(seen, "i64", f.add(f.get(seen, "i64"), 1))
            work = f.let(f"load ptr, ptr {_word(f, pool, WORK)}")
            forever.unless(f.let(f"icmp ne ptr {work}, null"))
            arguments = f.let(f"load ptr, ptr {_word(f, pool, ARGUMENTS)}")
            hands = f.let(f"load i64, ptr {_word(f, pool, HANDS)}")
            with f.when(f.compare("slt", number, hands)):
                f.line(f"call void {work}(ptr {arguments}, i64 {number})")
            done = _word(f, pool, DONE)
            _atomic_add(f, done, -1)
            _wake(f, done, _word(f, pool, DONE_SLEEPERS))
    # args: pool, work, arguments, hands, workers
    with module.function("hand_out", "ptr %args") as f:
        pool = f.let(f"load ptr, ptr {_word(f, '%args', 0)}")
        work = f.let(f"load ptr, ptr {_word(f, '%args', 1)}")
        arguments = f.let(f"load ptr, ptr {_word(f, '%args', 2)}")
        hands = f.let(f"load i64, ptr {_word(f, '%args', 3)}")
        workers = f.let(f"load i64, ptr {_word(f, '%args', 4)}")
        f.line(f"store ptr {work}, ptr {_word(f, pool, WORK)}")
        f.line(f"store ptr {arguments}, ptr {_word(f, pool, ARGUMENTS)}")
        f.line(f"store i64 {hands}, ptr {_word(f, pool, HANDS)}")
        done, news = _word(f, pool, DONE), _word(f, pool, NEWS)
        f.line(f"store atomic i64 {workers}, ptr {done} seq_cst, align 8")
        _atomic_add(f, news, 1)
        _wake(f, news, _word(f, pool, NEWS_SLEEPERS))
        with f.when(f.let(f"icmp ne ptr {work}, null")):
            f.line(f"call void {work}(ptr {arguments}, i64 0)")
            with f.repeat_while() as forever:
                left = _atomic_load(f, done)
                forever.unless(f.compare("sgt", left, 0))
                _wait_while(f, done, left, _word(f, pool, DONE_SLEEPERS))


@functools.cache
def _code() -> Code:
    module = Module(Target("float", 16))
    _emit_pool(module)
    return assemble(module.text())


class Pool:
    """Workers beside the calling thread. One piece of work at a time."""

    def __init__(self, hands: int) -> None:
        self.hands = hands
        self.lock = threading.Lock()
        self.memory = (ctypes.c_int64 * (WORDS + LINE))()
        address = ctypes.addressof(self.memory)
        self.address = (address + 63) // 64 * 64
        serve = _code().function("serve")
        self._hand_out = _code().function("hand_out")
        self._keep = []
        for number in range(1, hands):
            arguments = (ctypes.c_int64 * 3)(self.address, number, 0)
            self._keep.append(arguments)
            name = f"throughtime-{number}"
            threading.Thread(target=serve, args=(ctypes.addressof(arguments),), name=name, daemon=True).start()

    def run(self, work: int, arguments: int, hands: int) -> None:
        """Calls the compiled function at ``work`` on so many threads, this one included."""
        call = (ctypes.c_int64 * 5)(self.address, work, arguments, hands, self.hands - 1)
        self._hand_out(ctypes.addressof(call))


_pools: dict[int, Pool] = {}
_alone = threading.local()


def forget_pools() -> None:
    """After a fork the workers are gone; the child makes its own."""
    global _guard
    _pools.clear()
    _guard = threading.Lock()


_guard = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_pools)


def run(work: int, make_arguments: ctypes.Array, hands: int) -> None:
    """Runs a kernel on up to so many threads; on this one alone where the workers are at another's work.

    ``make_arguments`` is the kernel's array of words; words 0 and 1 are the pool's address and the number of hands.
    """
    address = ctypes.addressof(make_arguments)
    if hands > 1:
        with _guard:
            pool = _pools.get(hands) or _pools.setdefault(hands, Pool(hands))
        if pool.lock.acquire(blocking=False):
            try:
                make_arguments[0], make_arguments[1] = pool.address, hands
                pool.run(work, address, hands)
            finally:
                pool.lock.release()
            return
    make_arguments[0], make_arguments[1] = 0, 1
    KERNEL(work)(address, 0)


KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
