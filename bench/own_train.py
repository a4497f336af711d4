"""`forethought train RECIPE`, and what it held at most: prints a JSON line with peak_megabytes.

python bench/own_train.py RECIPE
"""

from __future__ import annotations

import json
import sys

from forethought.cli.app import main
from step_workload import peak_megabytes

if __name__ == "__main__":
    code = main(["train", *sys.argv[1:]])
    print(json.dumps({"peak_megabytes": peak_megabytes()}))
    sys.exit(code)
