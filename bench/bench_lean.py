"""The parts of a decoding step on a CPU: products, drawing, and attention by its threads.

    python bench/bench_lean.py

Shapes are SmolLM2-135M's. Products of gate and up (576 x 3,072) and of the head (576 x 49,152) by
our tiles and by the library that packs where there are none (oneDNN's bfloat16, FBGEMM's int8),
with 1, 8 and 128 rows, and packing the head; gate and up of 128 rows and the pass behind them,
threads sharing out rows or outputs of our tiles; 128 tokens drawn from the whole vocabulary,
compiled and by torch; attention of 128 rows (prompts of 80 tokens, 64 of their own) after a product
of torch's, in one thread, in OpenMP's and in two of Python's own; a step of SmolLM2-135M and of the
bundled model by one compiled call for all layers and by one for each operation, with 8 and 128
rows; and where there is AMX, the same step and reading its prompts, of 80 and of 400 tokens, with
keys and values in pairs, over which AMX attends, and apart. Medians of 31 in turn, 5 for reading.
Writes docs/results/lean_bf16.json, or lean_amx.json on a processor with AMX; on one without
AVX-512's dot products it measures nothing.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from device import name_here
from forethought.machine import usable_cores
from forethought.models.load import load_model
from forethought.sampling import draw, lean, products, tiles
from forethought.sampling.attention import attend
from forethought.sampling.draw import Kinds, draw_tokens
from forethought.sampling.kernels import silu_gate
from forethought.sampling.products import product_of
from forethought.sampling.scaled import Scaled
from forethought.sampling.shared_cache import SharedCache
from forethought.sampling.vectors import LANES
from forethought.types import SamplingParams
from record import write_result

SHAPES = {"gate_up": (576, 3072), "head": (576, 49152)}
ROWS, REPEATS = (1, 8, 128), 31
Ways = dict[str, Callable[[], object]]


def in_turn(
    ways: Ways, before: Callable[[], object] = lambda: None, repeats: int = REPEATS
) -> dict[str, float]:
    """Median microseconds of each way."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 3):
        for name, way in ways.items():
            before()
            began = time.perf_counter()
            way()
            if repeat >= 3:
                found[name].append(1e6 * (time.perf_counter() - began))
    return {name: round(statistics.median(times), 1) for name, times in found.items()}


def by_library(layer: nn.Module, weights: Any) -> Any:
    tiled = products.is_tiled
    products.is_tiled = lambda layers, weights: False
    try:
        return product_of([layer], weights)
    finally:
        products.is_tiled = tiled


def of_products(weights: Any) -> dict[str, float]:
    found = {}
    for name, (depth, width) in SHAPES.items():
        layer = nn.Linear(depth, width, bias=False)
        both = {"tiles": product_of([layer], weights), "library": by_library(layer, weights)}
        for rows in ROWS:
            ways: Ways = {}
            for way, product in both.items():
                x = Scaled.in_format(torch.randn(rows, depth), product.takes)
                ways[way] = lambda product=product, x=x: product(x)
            times = in_turn(ways)
            found |= {f"{name}_{rows}_{way}": value for way, value in times.items()}
            found[f"{name}_{rows}_ratio"] = round(times["library"] / times["tiles"], 1)
    packing = in_turn(
        {
            "tiles": lambda: product_of([layer], weights),
            "library": lambda: by_library(layer, weights),
        }
    )
    found["pack_ratio"] = round(packing["library"] / packing["tiles"], 1)
    return found | {f"pack_{way}": value for way, value in packing.items()}


def of_sharing() -> dict[str, float]:
    """What a thread writes the same thread reads where both passes share out rows."""
    product: Any = product_of([nn.Linear(*SHAPES["gate_up"], bias=False)], "bfloat16")
    x, rows = Scaled.in_format(torch.randn(128, SHAPES["gate_up"][0]), product.takes), 128
    y = np.empty((rows, SHAPES["gate_up"][1]), np.float32)
    out, threads = Scaled.room(rows, y.shape[1] // 2, "bfloat16"), usable_cores()
    rest = (product.panels, product.offsets, product.factors, product.biases), x.scales, y

    def way(by_rows: bool) -> Callable[[], object]:
        def run() -> None:
            tiles.multiply(threads, by_rows, x.values.view(np.uint32), *rest)
            silu_gate(threads, y, out.values, out.scales)

        return run

    times = in_turn({"rows": way(True), "outputs": way(False)})
    return times | {"ratio": round(times["outputs"] / times["rows"], 2)}


def of_drawing() -> dict[str, float]:
    logits, ones, uniforms = torch.randn(128, 49152), torch.ones(128), torch.rand(128)
    kernel, kinds = draw._kernel(), Kinds.of([SamplingParams()])

    def way(kernel: Any) -> Callable[[], object]:
        def run() -> object:
            draw._kernel = lambda: kernel
            return draw_tokens(logits, ones, ones, uniforms, kinds=kinds)

        return run

    times = in_turn({"compiled": way(kernel), "torch": way(None)})
    return times | {"ratio": round(times["torch"] / times["compiled"], 1)}


def of_attention() -> dict[str, float]:
    rows, kv_heads, heads, size, own = 128, 3, 9, 64, 64

    def table(count: int, columns: int) -> tuple[Any, Any]:
        shapes = (columns // LANES, size, LANES), (columns, size)
        return tuple(
            torch.randn(1, count, kv_heads, *s).bfloat16().view(torch.uint16).numpy()
            for s in shapes
        )

    prompts, owns = table(16, 80), table(rows, own)
    queries = np.random.default_rng(0).normal(size=(rows, heads, size)).astype(np.float32)
    groups, seats = np.arange(rows) // 8, np.arange(rows)
    lengths = np.full(rows, 80), np.full(rows, own)
    out = Scaled.room(rows, heads * size, "bfloat16")

    def part(threads: int, start: int, stop: int) -> None:
        some = slice(start, stop)
        attend(
            threads,
            (0,) * 3,
            queries[some],
            prompts,
            owns,
            0,
            groups[some],
            lengths[0][some],
            seats[some],
            lengths[1][some],
            out.values[some],
            out.scales[some],
        )

    pool = ThreadPoolExecutor(1)

    def in_two() -> None:
        other = pool.submit(part, 1, 0, rows // 2)
        part(1, rows // 2, rows)
        other.result()

    x, layer = torch.randn(rows, 576), nn.Linear(576, 1536)
    ways: Ways = {
        "one": lambda: part(1, 0, rows),
        "openmp": lambda: part(usable_cores(), 0, rows),
        "own": in_two,
    }
    with torch.inference_mode():
        times = in_turn(ways, before=lambda: layer(x))
    return times | {"ratio": round(times["own"] / times["openmp"], 1)}


def of_layers() -> dict[str, float]:
    found = {}
    for model in ("smollm2-135m", "bundled:seedling"):
        loaded: Any = load_model(model, dtype="float32").model
        for rows in (8, 128):
            ways = {way: decoding(loaded, rows, way)[0] for way in ("whole", "apart")}
            name = f"{model.split('-')[0].split(':')[-1]}_{rows}"
            times = in_turn(ways)
            found |= {f"{name}_{way}": value for way, value in times.items()}
            found[f"{name}_ratio"] = round(times["apart"] / times["whole"], 2)
    return found


def of_pairs() -> dict[str, float]:
    """Attention by AMX over keys and values in pairs, against AVX-512's, in a step of 128 rows and
    in reading the 16 prompts of 80 or 400 tokens."""
    loaded: Any = load_model("smollm2-135m", dtype="float32").model
    found: dict[str, float] = {}
    for prompt in (80, 400):
        both = {
            form: decoding(loaded, 128, "whole", prompt, form) for form in ("paired", "bfloat16")
        }
        for part, (name, repeats) in enumerate({"step": REPEATS, "reading": 5}.items()):
            ways: Ways = {form: pair[part] for form, pair in both.items()}
            times = in_turn(ways, repeats=repeats)
            found |= {f"{name}_{prompt}_{form}": value for form, value in times.items()}
            found[f"{name}_{prompt}_ratio"] = round(times["bfloat16"] / times["paired"], 2)
    return found


@torch.inference_mode()
def decoding(
    model: Any, rows: int, way: str, prompt: int = 80, form: str | None = None
) -> tuple[Callable[[], object], Callable[[], object]]:
    """One step after the other, in bfloat16, of rows that begin with 40 tokens of their own; and
    reading their prompts."""
    whole = lean.WholeLayers
    lean.WholeLayers = whole if way == "whole" else SimpleNamespace(of=lambda *_: None)
    try:
        view = lean.LeanModel.of(model, "bfloat16")
    finally:
        lean.WholeLayers = whole
    if form is not None:
        view = replace(view, cache_form=form)
    prompts = [tuple(range(10 + i, 10 + prompt + i)) for i in range(-(-rows // 8))]
    cache = SharedCache(model, rows, prompt, 128, view.cache_form)
    ready = view.prefill(prompts)
    for row in range(rows):
        cache.join(row, prompts[row // 8], ready[row // 8])
    lengths = [prompt] * rows

    def step() -> None:
        view.decode(cache, [5] * rows, lengths)
        lengths[:] = [length + 1 for length in lengths]

    for _ in range(40):
        step()
    return step, lambda: view.prefill(prompts)


def main() -> None:
    if not (tiles.HAS_INT8 and tiles.HAS_BFLOAT16):
        print("this processor has no dot products of int8 and bfloat16", file=sys.stderr)
        return
    warnings.simplefilter("ignore")  # torch says that its quantized tensors will go
    summary = {
        "bfloat16": of_products("bfloat16"),
        "int8": of_products("int8"),
        "sharing": of_sharing(),
        "draw": of_drawing(),
        "attention": of_attention(),
        "layers": of_layers(),
    }
    if tiles.HAS_AMX:
        summary["pairs"] = of_pairs()
    command = " ".join(["python", "bench/bench_lean.py", *sys.argv[1:]])
    write_result(name_here("lean"), command=command, seeds=[0], raw=summary, summary=summary)


if __name__ == "__main__":
    main()
