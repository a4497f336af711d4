"""What vector kernels are written with: LLVM's instructions for all numbers of a register.

`b` is llvmlite's builder. Numbers are float32, in memory also uint16, which stands for the upper
half of a float32: bfloat16.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils, config

Value = Any
_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18  # in Linux' numbers


def processor_has(feature: str) -> bool:
    """Whether numba compiles for this processor as it is, and it has that feature of LLVM's."""
    if config.CPU_NAME or config.CPU_FEATURES is not None or not config.ENABLE_AVX:
        return False
    try:
        return bool(binding.get_host_cpu_features().get(feature))
    except RuntimeError:  # LLVM does not know
        return False


@cache
def may_use_amx() -> bool:
    """Whether this processor has AMX for int8 and bfloat16, and the system lets this process use
    its registers, which it asks for."""
    is_linux = platform.system() == "Linux" and platform.machine() == "x86_64"
    if not (is_linux and processor_has("amx-bf16") and processor_has("amx-int8")):
        return False
    call = map(ctypes.c_long, (_ARCH_PRCTL, _REQUEST, _TILE_DATA))
    return bool(ctypes.CDLL(None).syscall(*call) == 0)


LANES = 16 if processor_has("avx512f") else 8  # float32 numbers in a register
# Instructions by their names.
CAN_ASSEMBLE = LANES == 16 and hasattr(binding, "initialize_native_asmparser")
HAS_BFLOAT16 = CAN_ASSEMBLE and processor_has("avx512bf16")
if CAN_ASSEMBLE:
    binding.initialize_native_asmparser()
LINE = 64  # bytes that the processor reads from memory at once
PANEL = 64  # outputs of a tile, whose weights stand together (`sampling/tiles.py`)
INT, INT16, INT32, FLOAT = ir.IntType(64), ir.IntType(16), ir.IntType(32), ir.FloatType()
_BYTES = ir.IntType(8).as_pointer()
_TO_READ, _DATA = 0, 1  # in LLVM's numbers
# Multiply and add may be one; no order of a sum is left to the compiler.
FLAGS = ("nsz", "contract")
# exp(x) = 2^k * exp(r) with |r| <= ln(2) / 2, the polynomial of Cephes' expf from r^7 down to r^2
EXP_POWERS = (
    *(1.9875691500e-4, 1.3981999507e-3, 8.3334519e-3, 4.1665795894e-2, 1.6666665459e-1),
    0.5,
)
PER_LN2, LN2_HIGH, LN2_LOW = 1.44269504, 0.693359375, -2.12194440e-4
EXP_LOWEST, EXP_HIGHEST = -87.0, 88.0


def array_of(context: Any, b: Any, kind: Any, value: Value) -> Any:
    return context.make_array(kind)(context, b, value)


def shape_of(b: Any, array: Any) -> Any:
    return cgutils.unpack_tuple(b, array.shape)


def row_at(b: Any, array: Any, *indices: Value) -> Value:
    """Where array[*indices] begins."""
    strides = cgutils.unpack_tuple(b, array.strides)
    place = b.ptrtoint(array.data, INT)
    for stride, index in zip(strides, indices, strict=False):
        place = b.add(place, b.mul(stride, index))
    return b.inttoptr(place, array.data.type)


def fetch(b: Any, place: Value, cache: int = 2) -> None:
    """Ask for the line at `place`, to be read from that cache before long."""
    kind = ir.FunctionType(ir.VoidType(), [_BYTES, INT32, INT32, INT32])
    prefetch = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0i8")
    b.call(prefetch, [b.bitcast(place, _BYTES), *map(INT32, (_TO_READ, 4 - cache, _DATA))])


def vector(element: Any, n: int = LANES) -> Any:
    """The type of n such numbers; of one, its own."""
    return element if n == 1 else ir.VectorType(element, n)


def constant(value: float, n: int = LANES, element: Any = FLOAT) -> Value:
    return ir.Constant(vector(element, n), value if n == 1 else [value] * n)


def spread(b: Any, number: Value, n: int = LANES) -> Value:
    """The number in every lane."""
    if n == 1:
        return number
    nothing = ir.Constant(ir.VectorType(number.type, n), ir.Undefined)
    first = b.insert_element(nothing, number, INT32(0))
    return b.shuffle_vector(first, nothing, constant(0, n, INT32))


def _lanes_of(numbers: Value) -> int:
    return numbers.type.count if isinstance(numbers.type, ir.VectorType) else 1


def load(b: Any, place: Value, n: int = LANES) -> Value:
    """n numbers from `place` on, of either kind, as float32."""
    element = place.type.pointee
    is_float = element == FLOAT
    found = b.load(b.bitcast(place, vector(element, n).as_pointer()), align=4 if is_float else 2)
    if is_float:
        return found
    bits = b.shl(b.zext(found, vector(INT32, n)), constant(16, n, INT32))
    return b.bitcast(bits, vector(FLOAT, n))


def store(b: Any, numbers: Value, place: Value) -> None:
    """float32 numbers from `place` on, in its kind."""
    element = place.type.pointee
    n = _lanes_of(numbers)
    place = b.bitcast(place, vector(element, n).as_pointer())
    if element == FLOAT:
        b.store(numbers, place, align=4)
    else:
        b.store(to_bfloat16(b, numbers), place, align=2)


def to_bfloat16(b: Any, numbers: Value) -> Value:
    """The nearest of each float32, of two as near the even one; what is not a number stays so. An
    instruction for it takes numbers below 2^-126 for 0."""
    n = _lanes_of(numbers)
    if HAS_BFLOAT16 and n == LANES:
        kind = ir.FunctionType(vector(INT16, n), [numbers.type])
        return b.asm(kind, "vcvtneps2bf16 $1, $0", "=v,v", [numbers], False)

    def all_(value: int) -> Value:
        return constant(value, n, INT32)

    bits = b.bitcast(numbers, vector(INT32, n))
    upper = b.lshr(bits, all_(16))
    rounded = b.lshr(b.add(b.add(bits, all_(0x7FFF)), b.and_(upper, all_(1))), all_(16))
    is_none = b.fcmp_unordered("uno", numbers, numbers)
    return b.trunc(b.select(is_none, b.or_(upper, all_(0x40)), rounded), vector(INT16, n))


def load_from(b: Any, row: Value, at: Value, n: int) -> Value:
    """n numbers of a row from number `at` on, as `load`."""
    return load(b, b.gep(row, [at]), n)


def store_into(b: Any, numbers: Value, row: Value, at: Value) -> None:
    """The same back, as `store`."""
    store(b, numbers, b.gep(row, [at]))


def variable(b: Any, value: Value) -> Value:
    """One that LLVM keeps in a register."""
    place = cgutils.alloca_once(b, value.type)
    b.store(value, place)
    return place


def add_to(b: Any, total: Value, numbers: Value) -> None:
    b.store(plus(b, b.load(total), numbers), total)


def plus(b: Any, x: Value, y: Value) -> Value:
    return b.fadd(x, y, flags=FLAGS)


def minus(b: Any, x: Value, y: Value) -> Value:
    return b.fsub(x, y, flags=FLAGS)


def times(b: Any, x: Value, y: Value) -> Value:
    return b.fmul(x, y, flags=FLAGS)


def greater(b: Any, x: Value, y: Value) -> Value:
    return b.select(b.fcmp_ordered(">", x, y), x, y)


def across(b: Any, numbers: Value, both: Any) -> Value:
    """One number of all lanes, by `both` of two halves again and again."""
    count = LANES
    while count > 1:
        count //= 2
        order = ir.Constant(vector(INT32), [(i + count) % LANES for i in range(LANES)])
        moved = b.shuffle_vector(numbers, ir.Constant(numbers.type, ir.Undefined), order)
        numbers = both(b, numbers, moved)
    return b.extract_element(numbers, INT32(0))


def exponential(b: Any, x: Value) -> Value:
    """exp(x) to 2 units in the last place, within [-87, 88]; what is not a number stays one. As
    `exponential` in kernels.py."""
    n = _lanes_of(x)

    def all_(value: float, element: Any = FLOAT) -> Value:
        return constant(value, n, element)

    low, high = all_(EXP_LOWEST), all_(EXP_HIGHEST)
    x = b.select(b.fcmp_ordered("<", x, low), low, x)
    x = b.select(b.fcmp_ordered(">", x, high), high, x)
    name = "llvm.floor.f32" if n == 1 else f"llvm.floor.v{n}f32"
    floor = cgutils.get_or_insert_function(b.module, ir.FunctionType(x.type, [x.type]), name)
    k = b.call(floor, [plus(b, times(b, x, all_(PER_LN2)), all_(0.5))])
    r = minus(b, x, times(b, k, all_(LN2_HIGH)))
    r = minus(b, r, times(b, k, all_(LN2_LOW)))
    p = all_(EXP_POWERS[0])
    for c in EXP_POWERS[1:]:
        p = plus(b, times(b, p, r), all_(c))
    p = plus(b, plus(b, times(b, times(b, p, r), r), r), all_(1.0))
    bits = b.add(b.fptosi(k, vector(INT32, n)), all_(127, INT32))
    power = b.bitcast(b.shl(bits, all_(23, INT32)), x.type)
    return times(b, p, power)


def over(b: Any, count: Value, work: Callable[[Value, int], None]) -> None:
    """work(start, LANES) for each whole vector of `count` numbers, and work(start, 1) for the
    rest."""
    whole = b.and_(count, INT(-LANES))
    with cgutils.for_range_slice(b, INT(0), whole, INT(LANES)) as (start, _):
        work(start, LANES)
    with cgutils.for_range_slice(b, whole, count, INT(1)) as (start, _):
        work(start, 1)
