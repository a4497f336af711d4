"""A compiled kernel in the threads that torch multiplies with.

OpenMP's threads wait for the next product by spinning, and a thread of another kind that works in
the meantime has to share a core with one that spins. So a kernel runs in OpenMP's own threads: the
OpenMP library that torch has loaded is asked for them. Without one, all is done in this thread.
Each kernel has a function of its own that shares it out: numba keeps no machine code of one that is
made from a kernel.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch  # loads OpenMP
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_PARALLEL, _THREAD, _THREADS = "GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads"
_BARRIER = "GOMP_barrier"
_NAMES = (_PARALLEL, _THREAD, _THREADS, _BARRIER)
_PREFIX = "forethought_"
_POINTER, _INT, _INT32 = ir.IntType(8).as_pointer(), ir.IntType(64), ir.IntType(32)
_WORK = ir.FunctionType(ir.VoidType(), [_POINTER])
_WORTH_SHARING = 1 << 14  # numbers to go over, some 4 microseconds: what starting a team takes


def threads_for(work: int) -> int:
    """In how many threads so many numbers are gone over."""
    return torch.get_num_threads() if work > _WORTH_SHARING else 1


def _alone(work: int, data: int, num_threads: int, flags: int) -> None:
    """What OpenMP does with one thread."""
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(work)(data)


_PARALLEL_KIND = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
)
_NUMBER_KIND, _NOTHING_KIND = ctypes.CFUNCTYPE(ctypes.c_int), ctypes.CFUNCTYPE(None)


def _functions() -> list[Any]:
    """OpenMP's, of the library that torch has loaded; else what stands in for them."""
    try:
        loaded = ctypes.CDLL(None)
        return [getattr(loaded, name) for name in _NAMES]
    except (OSError, TypeError, AttributeError):
        return stand_ins()


def stand_ins() -> list[Any]:
    """The same for a team of one."""
    numbers = [_NUMBER_KIND(lambda: 0), _NUMBER_KIND(lambda: 1)]
    return [_PARALLEL_KIND(_alone), *numbers, _NOTHING_KIND(lambda: None)]


def use_functions(functions: list[Any]) -> None:
    """Tell LLVM where they are; whoever calls keeps them alive."""
    for name, function in zip(_NAMES, functions, strict=True):
        binding.add_symbol(_PREFIX + name, ctypes.cast(function, ctypes.c_void_p).value)


_FUNCTIONS = _functions()
use_functions(_FUNCTIONS)


@intrinsic  # type: ignore[untyped-decorator]
def share_out(typing: Any, kernel: Any, arguments: Any, count: Any, num_threads: Any) -> Any:
    """kernel(*arguments, start, stop) over range(count) in equal parts, one a thread. A kernel
    returns nothing and raises nothing. With one thread it is called as it is."""
    inner = kernel.get_call_type(typing, (*arguments.types, types.int64, types.int64), {})

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        compiled = kernel.dispatcher.get_compile_result(inner)
        context.active_code_library.add_linking_library(compiled.library)

        def call(b: Any, packed: Any, start: Any, stop: Any) -> None:
            parts = [*cgutils.unpack_tuple(b, packed), start, stop]
            context.call_internal_no_propagate(b, compiled.fndesc, inner, parts)

        _, packed, count, num_threads = values
        with b.if_else(b.icmp_signed(">", num_threads, _INT(1))) as (several, one):
            with several:
                _in_threads(b, call, packed, count, num_threads)
            with one:
                call(b, packed, _INT(0), count)
        return context.get_dummy_value()

    return types.void(kernel, arguments, types.int64, types.int64), body


@intrinsic  # type: ignore[untyped-decorator]
def wait_for_team(typing: Any) -> Any:
    """Every thread of a team comes as far as this before any goes on."""

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [])
        b.call(cgutils.get_or_insert_function(b.module, kind, _PREFIX + _BARRIER), [])
        return context.get_dummy_value()

    return types.void(), body


def _in_threads(b: Any, call: Any, packed: Any, count: Any, num_threads: Any) -> None:
    """OpenMP calls a function of one pointer in every thread: here to the arguments and count."""
    shared = cgutils.alloca_once(b, ir.LiteralStructType([packed.type, _INT]))
    b.store(packed, cgutils.gep_inbounds(b, shared, 0, 0))
    b.store(count, cgutils.gep_inbounds(b, shared, 0, 1))
    work = ir.Function(b.module, _WORK, name=b.module.get_unique_name("share"))
    work.linkage = "internal"
    inside = ir.IRBuilder(work.append_basic_block("entry"))
    found = inside.bitcast(work.args[0], shared.type)
    packed, count = (inside.load(cgutils.gep_inbounds(inside, found, 0, part)) for part in range(2))
    number, total = (_ask(inside, name) for name in (_THREAD, _THREADS))
    start, stop = (
        inside.udiv(inside.mul(count, n), total) for n in (number, inside.add(number, _INT(1)))
    )
    call(inside, packed, start, stop)
    inside.ret_void()
    kind = ir.FunctionType(ir.VoidType(), [_WORK.as_pointer(), _POINTER, _INT32, _INT32])
    parallel = cgutils.get_or_insert_function(b.module, kind, _PREFIX + _PARALLEL)
    b.call(parallel, [work, b.bitcast(shared, _POINTER), b.trunc(num_threads, _INT32), _INT32(0)])


def _ask(b: Any, name: str) -> Any:
    kind = ir.FunctionType(_INT32, [])
    return b.zext(b.call(cgutils.get_or_insert_function(b.module, kind, _PREFIX + name), []), _INT)
