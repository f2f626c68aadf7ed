"""Everything that a GPU can change, in one run of less than 9.5 minutes.

Sections: the PCA alone, eigensolvers, the cost of a step, shared Gaussians, end to end with a network, what runs the
network, the paper's speeds, scoring. The report is written after each section. A section that fails or takes too long
does not affect the others. `--smoke` runs all sections at tiny sizes on the CPU, as a test.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.common.reports import argument_parser, environment, write_results
from benchmarks.gpu.sections import Config, Supervisor, work

NAMES = ("pca", "eigensolvers", "step", "shared", "end_to_end", "engine", "paper", "scoring")


def main() -> None:
    parser = argument_parser("benchmarks.gpu", __doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--sections", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME", help=str(NAMES))
    parser.add_argument("--minutes", type=float, default=9.3, help="stop after this time")
    parser.add_argument("--name", default="gpu", help="of the report")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        run_worker(options, Config("cpu" if options.smoke else options.device, options.smoke))
        return
    title = "# On a GPU" if options.device.startswith("cuda") else "# On a CPU"
    if options.smoke:
        title = "# A trial at tiny sizes: these figures mean nothing"
    start = time.monotonic()
    arguments = ["--smoke"] if options.smoke else ["--device", options.device]
    supervisor = Supervisor([sys.executable, "-m", options.module, *arguments], options.sections, 60 * options.minutes)

    def report() -> None:
        outcomes = {name: vars(outcome) for name, outcome in supervisor.outcomes.items()}
        values = {"environment": supervisor.environment, "sections": outcomes}
        write_results(options, options.name, supervisor.as_markdown(title), values, show=False)

    supervisor.run(report)
    report()
    states = {name: f"{outcome.status} {outcome.seconds:.0f} s" for name, outcome in supervisor.outcomes.items()}
    print(json.dumps(states), f"total {time.monotonic() - start:.0f} s")
    if any(outcome.status == "failed" for outcome in supervisor.outcomes.values()):
        sys.exit(1)


def run_worker(options: argparse.Namespace, config: Config) -> None:
    """Measure the sections in this process; only workers import torch."""
    import torch

    from benchmarks.gpu.eigensolvers import EIGENSOLVERS
    from benchmarks.gpu.linalg import PCA, SCORING, SHARED, STEP
    from benchmarks.gpu.network import END_TO_END, ENGINE, PAPER_SPEEDS

    if config.on_gpu and not torch.cuda.is_available():
        sys.exit("torch finds no GPU; --smoke is a trial without one")
    if options.smoke:
        torch.set_num_threads(1)  # threads slow down work this small, above all on a busy machine
    known = {s.name: s for s in (PCA, EIGENSOLVERS, STEP, SHARED, END_TO_END, ENGINE, PAPER_SPEEDS, SCORING)}
    with options.worker.open("a") as stream:
        work([known[name] for name in options.sections], config, environment(), stream)


if __name__ == "__main__":
    main()
