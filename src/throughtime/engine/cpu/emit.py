"""Writing LLVM's assembly: a module of functions, structured loops, vectors of one width.

Values are strings (names or literals). Loop-carried scalars and vectors live in stack slots; LLVM turns them into
registers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count


@dataclass(frozen=True)
class Target:
    """The number format and the vector registers that code is written for."""

    real: str  # "float" or "double"
    lanes: int  # numbers in one vector register

    @property
    def bytes(self) -> int:
        return 4 if self.real == "float" else 8

    @property
    def vector(self) -> str:
        return f"<{self.lanes} x {self.real}>"

    @property
    def whole(self) -> str:
        """The whole number of the same size."""
        return "i32" if self.real == "float" else "i64"

    @property
    def suffix(self) -> str:
        return f"v{self.lanes}f{8 * self.bytes}"


class Module:
    """Assembly of one module, with the intrinsics and functions that it uses."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.functions: list[str] = []
        self.declarations: dict[str, str] = {}

    def declare(self, name: str, returns: str, arguments: str) -> None:
        self.declarations[name] = f"declare {returns} @{name}({arguments})"

    @contextmanager
    def function(self, name: str, arguments: str, *, private: bool = False, inline: bool = False) -> Iterator[Function]:
        function = Function(self)
        yield function
        function.line("ret void")
        linkage = "internal " if private else ""
        attributes = "alwaysinline" if inline else ("noinline" if private else "")
        body = "\n".join(["entry:", *function.slots, *function.lines])
        self.functions.append(f"define {linkage}void @{name}({arguments}) {attributes} nounwind {{\n{body}\n}}")

    def text(self) -> str:
        return "\n".join([*self.declarations.values(), *self.functions])


class Function:
    """One function under construction. Methods append instructions and return the name of their result."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.target = module.target
        self.lines: list[str] = []
        self.slots: list[str] = []  # stack slots stand at the function's entry
        self.names = count()

    # instructions

    def line(self, text: str) -> None:
        self.lines.append("  " + text)

    def let(self, text: str) -> str:
        name = f"%v{next(self.names)}"
        self.line(f"{name} = {text}")
        return name

    def label(self) -> str:
        return f"L{next(self.names)}"

    def place(self, label: str) -> None:
        self.lines.append(f"{label}:")

    def call(self, name: str, returns: str, *arguments: tuple[str, str]) -> str:
        """A call of a function that returns a value; arguments are (type, value)."""
        self.module.declare(name, returns, ", ".join(kind for kind, _ in arguments))
        return self.let(f"call {returns} @{name}({', '.join(f'{kind} {value}' for kind, value in arguments)})")

    def run(self, name: str, *arguments: tuple[str, str]) -> None:
        """A call of a function of this module that returns nothing."""
        self.line(f"call void @{name}({', '.join(f'{kind} {value}' for kind, value in arguments)})")

    # whole numbers

    def add(self, a: str, b: str | int) -> str:
        return a if b in (0, "0") else self.let(f"add nsw i64 {a}, {b}")

    def sub(self, a: str | int, b: str | int) -> str:
        return self.let(f"sub nsw i64 {a}, {b}")

    def mul(self, a: str | int, b: str | int) -> str:
        return self.let(f"mul nsw i64 {a}, {b}")

    def div(self, a: str, b: str | int) -> str:
        return self.let(f"sdiv i64 {a}, {b}")

    def mod(self, a: str, b: str | int) -> str:
        return self.let(f"srem i64 {a}, {b}")

    def minimum(self, a: str | int, b: str | int) -> str:
        return self.call("llvm.smin.i64", "i64", ("i64", str(a)), ("i64", str(b)))

    def maximum(self, a: str | int, b: str | int) -> str:
        return self.call("llvm.smax.i64", "i64", ("i64", str(a)), ("i64", str(b)))

    def compare(self, relation: str, a: str, b: str | int) -> str:
        return self.let(f"icmp {relation} i64 {a}, {b}")

    def select(self, condition: str, a: str | int, b: str | int, kind: str = "i64") -> str:
        return self.let(f"select i1 {condition}, {kind} {a}, {kind} {b}")

    # memory

    def slot(self, kind: str, initial: str | None = None) -> str:
        name = f"%s{next(self.names)}"
        self.slots.append(f"  {name} = alloca {kind}")
        if initial is not None:
            self.set(name, kind, initial)
        return name

    def get(self, slot: str, kind: str) -> str:
        return self.let(f"load {kind}, ptr {slot}")

    def set(self, slot: str, kind: str, value: str) -> None:
        self.line(f"store {kind} {value}, ptr {slot}")

    def at(self, base: str, index: str | int, kind: str | None = None) -> str:
        """The address of an element."""
        return self.let(f"getelementptr {kind or self.target.real}, ptr {base}, i64 {index}")

    def load(self, address: str) -> str:
        t = self.target
        return self.let(f"load {t.real}, ptr {address}, align {t.bytes}")

    def store(self, value: str, address: str) -> None:
        t = self.target
        self.line(f"store {t.real} {value}, ptr {address}, align {t.bytes}")

    def vload(self, address: str, mask: str | None = None) -> str:
        t = self.target
        if mask is None:
            return self.let(f"load {t.vector}, ptr {address}, align {t.bytes}")
        return self.call(
            f"llvm.masked.load.{t.suffix}.p0",
            t.vector,
            ("ptr", f"align {t.bytes} {address}"),
            (f"<{t.lanes} x i1>", mask),
            (t.vector, "zeroinitializer"),
        )

    def vstore(self, value: str, address: str, mask: str | None = None) -> None:
        t = self.target
        if mask is None:
            self.line(f"store {t.vector} {value}, ptr {address}, align {t.bytes}")
            return
        name = f"llvm.masked.store.{t.suffix}.p0"
        self.module.declare(name, "void", f"{t.vector}, ptr, <{t.lanes} x i1>")
        self.run(name, (t.vector, value), ("ptr", f"align {t.bytes} {address}"), (f"<{t.lanes} x i1>", mask))

    # vectors

    def splat(self, scalar: str) -> str:
        t = self.target
        one = self.let(f"insertelement {t.vector} poison, {t.real} {scalar}, i32 0")
        return self.let(f"shufflevector {t.vector} {one}, {t.vector} poison, <{t.lanes} x i32> zeroinitializer")

    def fma(self, a: str, b: str, c: str) -> str:
        v = self.target.vector
        return self.call(f"llvm.fma.{self.target.suffix}", v, (v, a), (v, b), (v, c))

    # structure

    @contextmanager
    def loop(self, start: str | int, stop: str | int, step: str | int = 1) -> Iterator[str]:
        """``for i in range(start, stop, step)``."""
        head, body, done = self.label(), self.label(), self.label()
        index = self.slot("i64", str(start))
        self.line(f"br label %{head}")
        self.place(head)
        i = self.get(index, "i64")
        self.line(f"br i1 {self.compare('slt', i, stop)}, label %{body}, label %{done}")
        self.place(body)
        yield i
        self.set(index, "i64", self.add(i, step))
        self.line(f"br label %{head}")
        self.place(done)

    @contextmanager
    def when(self, condition: str) -> Iterator[None]:
        """``if condition``."""
        then, done = self.label(), self.label()
        self.line(f"br i1 {condition}, label %{then}, label %{done}")
        self.place(then)
        yield
        self.line(f"br label %{done}")
        self.place(done)

    @contextmanager
    def repeat_while(self) -> Iterator[WhileLoop]:
        """``while True``, left where the condition given to ``unless`` fails."""
        head, done = self.label(), self.label()
        self.line(f"br label %{head}")
        self.place(head)
        yield WhileLoop(self, done)
        self.line(f"br label %{head}")
        self.place(done)


@dataclass
class WhileLoop:
    function: Function
    done: str

    def unless(self, condition: str) -> None:
        """Leaves the loop unless the condition holds."""
        go_on = self.function.label()
        self.function.line(f"br i1 {condition}, label %{go_on}, label %{self.done}")
        self.function.place(go_on)
