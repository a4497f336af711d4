"""Seconds of training until the bundled model answers as well as TRL 1.16 makes it.

    python bench/bench_accuracy.py [--seeds 0 1 2] [--batches 30] [--rates SETTING ...]
        [--further SETTING ...] [--set KEY=VALUE ...]

Both sides start from the bundled model and train on one family with the same examples and rewards,
with a learning rate that falls linearly. A batch is 256 rollouts, and a SETTING of TRL is
RATE[:UPDATES[:PROMPTSxGROUP[:DTYPE]]], where a smaller step, as 32x4, is a share of a batch.
Two peers are the best on the first seed by the accuracy of the last copies: one of --rates, which
differ in the rate alone, and one of all. Ours, chosen on other seeds, is the quickstart's 32
prompts x 4, with rloo and two updates; --set changes it. After every third batch the weights are
kept, and each copy answers two samples a problem (see race.py). Writes docs/results/accuracy.json,
accuracy_bf16.json on a processor with that arithmetic, accuracy_amx.json on one with AMX and
accuracy_cuda.json on CUDA.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from device import name_here
from forethought.models.load import load_model
from forethought.models.save import save_model
from race import Point, Race, Setting, accuracy_of, compare, curve, final, train_own, train_peer
from record import write_result

RATES = ["1e-4", "4e-4", "1e-3"]  # in float32; bfloat16 pays on few processors
FURTHER = ["4e-4:4:32x8", "4e-4:4:64x4", "4e-4:2:32x4"]
SHAPE = "32x8"
RECIPE: dict[str, Any] = {
    "prompts_per_step": 32,
    "group_size": 4,
    "minibatches": 2,
    "optimizer": {"learning_rate": 4e-4, "warmup_steps": 5, "schedule": "linear"},
    "reward": {"parts": {"accuracy": 1.0, "format": 0.1}},
}
SHARES = [0.5, 0.75, 0.9]
NAME = name_here("accuracy")


def medians(seeds: dict[str, Any]) -> dict[str, float]:
    keys = [f"at_{100 * share:.0f}" for share in SHARES]
    return {
        f"median_ratio_{key}": statistics.median(
            seed[key]["ratio"] or 0.0 for seed in seeds.values()
        )
        for key in keys
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--rates", nargs="+", default=RATES, metavar="SETTING")
    parser.add_argument("--further", nargs="*", default=FURTHER, metavar="SETTING")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    base, first = "bundled:seedling", arguments.seeds[0]
    race = Race(
        task="sum", batch=256, batches=arguments.batches, every=3, copies=1, max_tokens=80,
        micro_batch=256, warmup=5, recipe=RECIPE, problems=300, samples=2,
    )  # fmt: skip
    curves: dict[str, list[Point]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary) / "seedling"
        loaded = load_model(base)
        save_model(loaded.model, loaded.tokenizer, model)
        start = accuracy_of(race, model, base)

        def peer(setting: Setting, seed: int) -> list[Point]:
            name = f"trl_{setting.name}_{seed}"
            if name not in curves:
                folder = Path(temporary) / name
                curves[name] = curve(
                    race, folder, train_peer(race, setting, model, seed, folder), base
                )
                print(name, curves[name][-1], file=sys.stderr, flush=True)
            return curves[name]

        def own(seed: int) -> list[Point]:
            name = f"own_{seed}"
            if name not in curves:
                folder = Path(temporary) / name
                until = train_own(race, base, seed, folder, arguments.changes)
                curves[name] = curve(race, folder, until, base)
                print(name, curves[name][-1], file=sys.stderr, flush=True)
            return curves[name]

        rates, further = (
            [Setting.read(text, SHAPE) for text in given]
            for given in (arguments.rates, arguments.further)
        )
        tried = {setting: final(race, peer(setting, first)) for setting in [*rates, *further]}
        best = {
            "by_rate": max(rates, key=tried.__getitem__),
            "by_all": max(tried, key=tried.__getitem__),
        }
        found: dict[str, dict[str, Any]] = {kind: {} for kind in best}
        for seed in arguments.seeds:  # in turn, so that a busy while falls on all
            for kind, setting in best.items():
                found[kind][f"seed_{seed}"] = compare(
                    race, start, peer(setting, seed), own(seed), SHARES
                )
    summary = {
        "start": round(start, 1),
        "tried": {setting.name: round(value, 1) for setting, value in tried.items()},
    } | {
        kind: {"setting": setting.name, **found[kind], **medians(found[kind])}
        for kind, setting in best.items()
    }
    print(json.dumps(summary, indent=1), file=sys.stderr)
    write_result(
        NAME,
        command=" ".join(["python", f"bench/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        seeds=arguments.seeds,
        raw=curves,
        summary=summary,
    )


if __name__ == "__main__":
    main()
