"""From LLVM's assembly to code in memory, by way of a cache on disk."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm

from throughtime.engine.cpu.emit import Target
from throughtime.engine.cpu.once import once

CODE_VERSION = 1  # part of each key: raised when what stands in the cache no longer fits


@functools.cache
def host_features() -> str:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.get_host_cpu_features().flatten()


@functools.cache
def instruction_set() -> str:
    """The vector instructions to use: THROUGHTIME_ISA where set, else the widest of this machine."""
    wanted = os.environ.get("THROUGHTIME_ISA")
    if wanted:
        if wanted not in ("avx512", "avx2", "neon"):
            raise ValueError(f"THROUGHTIME_ISA must be avx512, avx2 or neon, not {wanted!r}")
        return wanted
    features = host_features()
    if "+avx512f" in features:
        return "avx512"
    if "+avx2" in features and "+fma" in features:
        return "avx2"
    if "+neon" in features:
        return "neon"
    return "none"


BYTES_PER_VECTOR = {"avx512": 64, "avx2": 32, "neon": 16}


def target_for(real: str) -> Target:
    size = 4 if real == "float" else 8
    return Target(real, BYTES_PER_VECTOR[instruction_set()] // size)


def new_target_machine() -> llvm.TargetMachine:
    features = host_features()
    if instruction_set() == "avx512":
        features += ",-prefer-256-bit"
    elif "avx512" in features:
        features += ",-avx512f"
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=3
    )


target_machine = once(new_target_machine)


@dataclass(frozen=True)
class Code:
    """Machine code in memory."""

    engine: llvm.ExecutionEngine  # owns the memory

    def address(self, name: str) -> int:
        return self.engine.get_function_address(name)

    def publish(self, name: str) -> None:
        """Makes a function known by its name to code assembled after."""
        llvm.add_symbol(name, self.address(name))

    def function(self, name: str) -> ctypes._FuncPointer:
        """A function of one array of arguments; the interpreter's lock is not held while it runs."""
        return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.address(name))


def assemble(text: str, known: dict[str, int] | None = None) -> Code:
    """Compiles a module, or takes it from the cache on disk. ``known``: addresses of functions that it calls."""
    for name, address in (known or {}).items():
        llvm.add_symbol(name, address)
    machine = target_machine()
    recipe = f"{CODE_VERSION} {llvmlite.__version__} {llvm.get_host_cpu_name()} {machine.triple} {host_features()}"
    key = hashlib.sha256(f"{recipe} {instruction_set()}\n{text}".encode()).hexdigest()
    code = read_cached(key)
    if code is None:
        code = compile_object(text, machine)
        write_cached(key, code)
    empty = llvm.parse_assembly("")
    engine = llvm.create_mcjit_compiler(empty, new_target_machine())  # which it owns
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return Code(engine)


def compile_object(text: str, machine: llvm.TargetMachine) -> bytes:
    module = llvm.parse_assembly(text)
    module.triple = machine.triple
    module.data_layout = str(machine.target_data)
    module.verify()
    # loops are written unrolled and in vectors where that pays; doing it again costs seconds and gains nothing
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return machine.emit_object(module)


# The cache: files of a checksum and the code. What cannot be trusted is made anew.


def cache_folder() -> Path:
    base = os.environ.get("THROUGHTIME_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "throughtime"


def read_cached(key: str) -> bytes | None:
    try:
        data = (cache_folder() / key).read_bytes()
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError) as error:  # a RuntimeError: nobody knows where home is
        warnings.warn(f"the kernel cache cannot be read ({error}); kernels are compiled anew", stacklevel=2)
        return None
    digest, code = data[:32], data[32:]
    if hashlib.sha256(code).digest() != digest:
        warnings.warn(f"the kernel cache held a damaged file ({cache_folder() / key}); it is made anew", stacklevel=2)
        return None
    return code


def write_cached(key: str, code: bytes) -> None:
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file, _removed_on_failure(file.name):
            file.write(hashlib.sha256(code).digest() + code)
            file.close()
            os.replace(file.name, folder / key)
    except (OSError, RuntimeError) as error:
        warnings.warn(f"the kernel cache cannot be written ({error}); kernels live for this run only", stacklevel=2)


@contextlib.contextmanager
def _removed_on_failure(path: str) -> Iterator[None]:
    """A full disk is not to keep what did not fit on it."""
    try:
        yield
    except OSError:
        Path(path).unlink(missing_ok=True)
        raise
