"""`forethought train RECIPE`, and what it held at most: prints a JSON line with peak_megabytes.

    python bench/own_train.py RECIPE

Memory of the GPU where there is one, as torch reserved it; else what was resident.
"""

from __future__ import annotations

import json
import resource
import sys

from forethought.cli.app import main


def peak_megabytes() -> float:
    import torch  # not sooner: the command sets how its threads wait before it loads

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    code = main(["train", *sys.argv[1:]])
    print(json.dumps({"peak_megabytes": peak_megabytes()}))
    sys.exit(code)
