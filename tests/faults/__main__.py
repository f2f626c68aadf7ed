"""Long runs in which something goes wrong again and again. Not part of the tests: each takes minutes.

    python -m tests.faults soak [--cycles 2000]     fit, predict, update, save, load: flat memory, threads, file handles
    python -m tests.faults kill [--kills 30]        `kill -9` of fit, update, predict and watch at random moments
    python -m tests.faults workers [--kills 10]     workers of joblib, Dask and torch.distributed are killed
    python -m tests.faults disk                     a disk that is full, for everything that writes (Linux, as root)

Each prints what it counted, and ends with an error if something was lost.
"""

from __future__ import annotations

import argparse
import sys
import warnings

from ipca_sklearn.exceptions import FewImagesWarning
from tests.faults import disk, kill, soak, workers

RUNS = {"soak": soak.run, "kill": kill.run, "workers": workers.run, "disk": disk.run}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=RUNS)
    parser.add_argument("--cycles", type=int, default=2000, help="of soak")
    parser.add_argument("--kills", type=int, default=30, help="of kill, for each command, and of workers")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore", FewImagesWarning)
    failures = RUNS[options.what](options)
    print(f"{len(failures)} failures")
    print(*failures, sep="\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
