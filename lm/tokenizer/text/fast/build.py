"""Machine code for the kernels: compiled by numba once, stored on disk, and loaded again without importing numba.

numba has its own cache, but using it means importing numba, which takes a quarter of a second, and more where other
packages extend numba. Here the compiled code is stored as an object file, which llvmlite loads in a few hundredths of
a second. Each folder of kernels has its own `Library`, so a change to one folder recompiles only that folder:

    library = Library("lm.tokenizer.text.fast", "utf8", "scanner")
    library.load().find_invalid_utf8(data, size)

A kernel takes integers and C-contiguous arrays, checks the dtypes of the arrays, and runs without holding the GIL.
"""

import ctypes
import hashlib
import json
import sys
from collections.abc import Iterator
from functools import cache, cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import numpy as np

from lm.atomic import atomic_write, make_folder
from lm.errors import UserError

_SHA256_BYTES = 32

# LLVM replaces loops that fill or copy memory with calls to these.
_C_FUNCTIONS = ("memset", "memcpy", "memmove")


@cache
def can_load() -> bool:
    """Return whether numba and its dependencies are installed and the processor is little-endian."""
    return sys.byteorder == "little" and all(map(find_spec, ("numba", "llvmlite", "platformdirs")))


class Library:
    """The kernels of one folder, compiled and loaded together.

    Args:
        package: The folder as a package, such as `lm.tokenizer.text.fast`.
        modules: The names of the modules in it that define kernels.
    """

    def __init__(self, package: str, *modules: str) -> None:
        self._package = package
        self._modules = modules
        self._kernels: SimpleNamespace | None = None
        self._lock = Lock()

    def is_loaded(self) -> bool:
        return self._kernels is not None

    def is_compiled(self) -> bool:
        """Return whether `load` finds the machine code on disk and so does not have to compile it."""
        return self.is_loaded() or self._path.exists()

    def load(self) -> SimpleNamespace:
        """Return a namespace with one function per kernel; compile the kernels if their code is not on disk."""
        with self._lock:  # a second engine would replace the first one, and free code that another thread is running
            if self._kernels is None:
                self._kernels = self._load()
            return self._kernels

    def _load(self) -> SimpleNamespace:
        from llvmlite import binding

        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        machine = binding.Target.from_default_triple().create_target_machine(
            cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=3, jit=True
        )
        header, _, code = self._read_or_compile(machine).partition(b"\n")
        libc = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)
        for name in _C_FUNCTIONS:
            binding.add_symbol(name, ctypes.cast(getattr(libc, name), ctypes.c_void_p).value)
        engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
        engine.add_object_file(binding.ObjectFileRef.from_data(code))
        engine.finalize_object()
        kernels = SimpleNamespace(engine=engine)  # the engine owns the code, so it must live as long as the kernels
        for name, arguments in json.loads(header).items():
            prototype = ctypes.CFUNCTYPE(ctypes.c_int64, *map(_ctypes_argument, arguments))
            setattr(kernels, name, prototype(engine.get_function_address(name)))
        return kernels

    @cached_property
    def _path(self) -> Path:
        """The file that stores the machine code.

        Its name contains a hash of everything the code depends on: the sources in this folder and in the folder of
        `Library`, the versions of the compilers, and the processor. It is not inside the package, which may be
        read-only, so that copies of the package with the same sources share it.
        """
        from importlib import metadata

        from llvmlite import binding
        from platformdirs import user_cache_path

        digest = hashlib.sha256()
        for source in self._sources():
            digest.update(source.read_bytes())
        versions = metadata.version("numba"), metadata.version("llvmlite")
        processor = binding.get_process_triple(), binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
        digest.update("\n".join((*self._modules, *versions, *processor)).encode())
        return user_cache_path("lm") / f"{self._package}-{digest.hexdigest()[:16]}"

    def _sources(self) -> Iterator[Path]:
        (own,) = import_module(self._package).__path__
        for folder in sorted({Path(__file__).parent, Path(own)}):
            yield from sorted(folder.glob("*.py"))

    def _read_or_compile(self, machine: Any) -> bytes:
        """Return a line of JSON with the arguments of each kernel, followed by an object file."""
        content = _read(self._path)
        if content is not None:
            return content
        try:
            make_folder(self._path.parent)
        except UserError as error:
            print(f"the compiled kernels will not be stored: {error}", file=sys.stderr)
            return self._compile(machine)
        from filelock import FileLock

        # Of several processes that start at the same time, one compiles and the others wait for it.
        with FileLock(self._path.with_name(f"{self._path.name}.lock")):
            content = _read(self._path)
            if content is None:
                content = self._compile(machine)
                with atomic_write(self._path) as file:
                    file.write(hashlib.sha256(content).digest() + content)
        return content

    def _compile(self, machine: Any) -> bytes:
        print(f"compiling the kernels in {self._package}, once on this machine ...", file=sys.stderr)
        from llvmlite import binding

        from lm.tokenizer.text.fast.intrinsics import Kernel

        kernels: dict[str, Kernel] = {}
        for name in self._modules:
            module = import_module(f"{self._package}.{name}")
            kernels |= {name: kernel for name, kernel in vars(module).items() if isinstance(kernel, Kernel)}
        linked = binding.parse_assembly("")
        for kernel in kernels.values():
            linked.link_in(binding.parse_assembly(kernel.compile()))
        # Only the kernels are called from outside, so everything numba adds for Python can be removed.
        for function in linked.functions:
            if not function.is_declaration and function.name not in kernels:
                function.linkage = "internal"
        passes = binding.create_new_module_pass_manager()
        passes.add_global_dead_code_eliminate_pass()
        passes.run(linked, binding.create_pass_builder(machine, binding.create_pipeline_tuning_options()))
        header = {name: kernel.arguments for name, kernel in kernels.items()}
        return json.dumps(header).encode() + b"\n" + machine.emit_object(linked)


def _ctypes_argument(name: str) -> Any:
    """Return the ctypes type of an argument: an integer, or an array whose dtype is checked in every call."""
    return ctypes.c_int64 if name == "int" else np.ctypeslib.ndpointer(np.dtype(name), flags="C_CONTIGUOUS")


def _read(path: Path) -> bytes | None:
    """Return the stored content, or None if the file is missing or damaged."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    digest, content = stored[:_SHA256_BYTES], stored[_SHA256_BYTES:]
    return content if hashlib.sha256(content).digest() == digest else None
