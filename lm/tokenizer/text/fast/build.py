"""Machine code of the kernels: compiled by numba once, kept on disk, and loaded again without numba.

numba has a cache of its own, but to use that, numba must be imported and set up: a quarter of a second, and more where
other packages extend it. What it compiles is kept as an object file instead, which llvmlite loads in a few hundredths:

    kernels = load()
    kernels.find_invalid(data, end)

A kernel takes numbers and C-contiguous arrays, whose types are checked, and runs without Python's lock.
"""

import ctypes
import hashlib
import json
import sys
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from lm.atomic import atomic_write, make_folder
from lm.errors import UserError

_SHA256_BYTES = 32

# What LLVM makes of loops that fill or copy.
_C_FUNCTIONS = ("memset", "memcpy", "memmove")


@cache
def can_load() -> bool:
    """Whether there are numba and what it needs, and the byte order that the kernels need."""
    return sys.byteorder == "little" and all(map(find_spec, ("numba", "llvmlite", "platformdirs")))


def is_loaded() -> bool:
    return load.cache_info().currsize > 0


def is_compiled() -> bool:
    """Whether `load` finds the machine code on disk, and does not have to compile."""
    from llvmlite import binding

    return is_loaded() or _path(binding).exists()


@cache
def load() -> SimpleNamespace:
    """The kernels, as functions of a namespace; compiled first if their machine code is not on disk."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=3, jit=True
    )
    header, _, code = _stored_or_compiled(binding, machine).partition(b"\n")
    library = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)
    for name in _C_FUNCTIONS:
        binding.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    kernels = SimpleNamespace(engine=engine)  # the code lives as long as its engine
    for name, arguments in json.loads(header).items():
        prototype = ctypes.CFUNCTYPE(ctypes.c_int64, *map(_argument_type, arguments))
        setattr(kernels, name, prototype(engine.get_function_address(name)))
    return kernels


def _argument_type(name: str) -> Any:
    """A number, or an array whose type is checked in every call."""
    return ctypes.c_int64 if name == "int" else np.ctypeslib.ndpointer(np.dtype(name), flags="C_CONTIGUOUS")


def _stored_or_compiled(binding: Any, machine: Any) -> bytes:
    """A line of JSON, the arguments of each kernel, and an object file."""
    path = _path(binding)
    stored = _read(path)
    if stored is not None:
        return stored
    try:
        make_folder(path.parent)
    except UserError as error:
        print(f"the compiled tokenizer will not be kept: {error}", file=sys.stderr)
        return _compile(binding, machine)
    # Two processes that start together compile once.
    with FileLock(path.with_suffix(".lock")):
        stored = _read(path)
        if stored is None:
            stored = _compile(binding, machine)
            with atomic_write(path) as file:
                file.write(hashlib.sha256(stored).digest() + stored)
    return stored


@cache
def _path(binding: Any) -> Path:
    """Where the machine code is kept: named by all that determines it, the sources, compilers and processor.

    Not in the package's own folder: that may be read-only, and copies of the package share what they have in common.
    """
    from platformdirs import user_cache_path

    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    versions = metadata.version("numba"), metadata.version("llvmlite")
    processor = binding.get_process_triple(), binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
    digest.update("\n".join((*versions, *processor)).encode())
    return user_cache_path("lm") / f"kernels-{digest.hexdigest()[:16]}"


def _read(path: Path) -> bytes | None:
    """What was stored there; None if there is nothing, or not the whole of it."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, stored = content[:_SHA256_BYTES], content[_SHA256_BYTES:]
    return stored if hashlib.sha256(stored).digest() == digest else None


def _compile(binding: Any, machine: Any) -> bytes:
    from lm.tokenizer.encoding.fast import decoding, encoding
    from lm.tokenizer.text.fast import scanner
    from lm.tokenizer.text.fast import utf8 as text
    from lm.tokenizer.text.fast.intrinsics import Kernel
    from lm.tokenizer.training.fast import counting, merging

    rooms = (text, scanner, counting, merging, encoding, decoding)
    kernels = {name: kernel for room in rooms for name, kernel in vars(room).items() if isinstance(kernel, Kernel)}
    linked = binding.parse_assembly("")
    for kernel in tqdm(kernels.values(), desc="compiling the tokenizer, once for this machine", unit="kernel"):
        linked.link_in(binding.parse_assembly(kernel.compile()))
    # Only the kernels are called from outside: all that numba adds for Python goes.
    for function in linked.functions:
        if not function.is_declaration and function.name not in kernels:
            function.linkage = "internal"
    passes = binding.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(linked, binding.create_pass_builder(machine, binding.create_pipeline_tuning_options()))
    header = {name: kernel.arguments for name, kernel in kernels.items()}
    return json.dumps(header).encode() + b"\n" + machine.emit_object(linked)
