"""Seconds of RL until SmolLM2-135M answers as well as TRL 1.16 makes it, after the same cold start.

    python bench/bench_smollm2_accuracy.py [--seeds 0 1] [--rates SETTING ...]
        [--further SETTING ...] [--formats FORMAT ...] [--set KEY=VALUE ...] [--keep FOLDER]

Both sides start from the cold start of recipes/smollm2-arithmetic.toml, one a seed, and make four
batches of 128 rollouts of its task with the same rewards. A SETTING of TRL is
RATE[:UPDATES[:PROMPTSxGROUP[:DTYPE[:LAYERS]]]], where a smaller step, as 8x8, is a share of a
batch, the format "autocast" is weights in float32 and arithmetic in bfloat16, and with LAYERS only
the last ones learn. Two peers are the best on the first seed by the accuracy of the last copies:
one of --rates, which differ in the rate alone, and one of all. Ours is 8 prompts x 8 with the last
10 of 30 layers learning, chosen on other seeds, with rollouts in the format that is the default
here and in int8; --formats takes one of the two, and --set changes both. Neither side warms up. The
weights are kept after every batch, and after half of one where that is a step (see race.py); the
target is three quarters of what TRL gains. What stands in --keep is not done again.
Writes docs/results/smollm2_accuracy.json, smollm2_accuracy_bf16.json on a processor with that
arithmetic, or smollm2_accuracy_amx.json on one with AMX.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from cold_start import cold_start
from device import is_bf16, name_here
from race import Point, Race, Setting, accuracy_of, compare, curve, final, train_own, train_peer
from record import write_result

RATES = ["1e-5", "2e-5", "5e-5"]
SHAPE, DTYPE = "16x8", "autocast" if is_bf16() else "float32"
LAYERS = 10
FURTHER = ["2e-5:1:8x8", f"4e-5:1:{SHAPE}:{DTYPE}:{LAYERS}"]
RECIPE: dict[str, Any] = {
    "prompts_per_step": 8,
    "group_size": 8,
    "max_rows": 128,
    "max_batch_tokens": 2048,
    "trained_layers": LAYERS,
    "optimizer": {"learning_rate": 4e-5, "warmup_steps": 0, "schedule": "linear"},
}
FORMATS: dict[str, list[str]] = {"default": [], "int8": ["rollout_dtype=int8"]}  # of ours
SHARE = 0.75  # of TRL's gain


def name_of(side: Setting | list[str], seed: int) -> str:
    parts = ["trl", side.name] if isinstance(side, Setting) else ["own", *side]
    return "_".join([*parts, str(seed)])


def measure(race: Race, folder: Path, seed: int, side: Setting | list[str]) -> list[Point]:
    """The curve of TRL with a setting or of ours with changes; kept in the folder."""
    theirs, name = isinstance(side, Setting), name_of(side, seed)
    kept = folder / f"{name}.json"
    if not kept.exists():
        model, run = cold_start(folder / f"start-{seed}", seed), folder / name
        if theirs:
            until = train_peer(race, side, model, seed, run)
        else:
            until = train_own(race, str(model), seed, run, side)
        kept.write_text(json.dumps(curve(race, run, until, str(model))), encoding="utf-8")
    points: list[Point] = json.loads(kept.read_text(encoding="utf-8"))
    print(name, points[-1], file=sys.stderr, flush=True)
    return points


def begin(race: Race, folder: Path, seed: int) -> float:
    """Percent of samples right after the cold start."""
    model = cold_start(folder / f"start-{seed}", seed)
    return accuracy_of(race, model, str(model))


def command_of(arguments: argparse.Namespace) -> str:
    """Without --keep, which says where on this machine."""
    parts = ["python", "bench/bench_smollm2_accuracy.py"]
    defaults = {"seeds": [0, 1], "rates": RATES, "further": FURTHER, "formats": [*FORMATS]}
    for name, default in defaults.items():
        given = getattr(arguments, name)
        parts += [f"--{name}", *map(str, given)] if given != default else []
    return " ".join([*parts, *(f"--set {change}" for change in arguments.changes)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rates", nargs="+", default=RATES, metavar="SETTING")
    parser.add_argument("--further", nargs="*", default=FURTHER, metavar="SETTING")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=[*FORMATS])
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="KEY=VALUE")
    parser.add_argument("--keep", type=Path, help="keep cold starts and curves in this folder")
    arguments = parser.parse_args()
    race = Race(
        task="sum:difficulty=2", batch=128, batches=4, every=1, copies=2, max_tokens=64,
        micro_batch=32, warmup=0, recipe=RECIPE, problems=250, samples=2,
    )  # fmt: skip
    rates, further = (
        [Setting.read(text, SHAPE, DTYPE) for text in given]
        for given in (arguments.rates, arguments.further)
    )
    raw: dict[str, list[Point]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)

        def points(seed: int, side: Setting | list[str]) -> list[Point]:
            name = name_of(side, seed)
            if name not in raw:
                raw[name] = measure(race, folder, seed, side)
            return raw[name]

        first = arguments.seeds[0]
        tried = {setting: final(race, points(first, setting)) for setting in [*rates, *further]}
        best = {
            "by_rate": max(rates, key=tried.__getitem__),
            "by_all": max(tried, key=tried.__getitem__),
        }
        found: dict[str, dict[str, Any]] = {kind: {} for kind in best}
        for seed in arguments.seeds:  # in turn, so that a busy while falls on all
            start = begin(race, folder, seed)
            for kind, setting in best.items():
                compared: dict[str, Any] = {"start": round(start, 1)}
                for name in arguments.formats:
                    own = points(seed, [*FORMATS[name], *arguments.changes])
                    compared[name] = compare(race, start, points(seed, setting), own, [SHARE])
                found[kind][f"seed_{seed}"] = compared
    write_result(
        name_here("smollm2_accuracy"),
        command=command_of(arguments),
        seeds=arguments.seeds,
        raw=raw,
        summary={"tried": {setting.name: round(value, 1) for setting, value in tried.items()}}
        | {kind: {"setting": setting.name} | found[kind] for kind, setting in best.items()},
    )


if __name__ == "__main__":
    main()
