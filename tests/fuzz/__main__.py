"""Search for input that breaks a law, for a time: `python -m tests.fuzz --seconds 60`.

Each round has a seed of its own, which is printed where a law was broken; hypothesis then shrinks what it found.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
import warnings

import hypothesis
from hypothesis import HealthCheck, settings
from hypothesis.errors import HypothesisWarning

from tests.fuzz.targets import TARGETS

_ROUND = 50


def main() -> int:
    """Take turns between the targets until the time is up; returns 1 where a law was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to search (60)")
    parser.add_argument("--seed", type=int, default=None, help="the first round's seed (random)")
    parser.add_argument("--only", default="", help="a part of the target's name")
    arguments = parser.parse_args()
    logging.getLogger().addHandler(logging.NullHandler())
    # Arguments of 70 KB are part of what is tried.
    warnings.simplefilter("ignore", HypothesisWarning)
    seed = random.SystemRandom().randrange(2**31) if arguments.seed is None else arguments.seed
    limits = settings(
        max_examples=_ROUND, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    targets = [limits(target) for target in TARGETS if arguments.only in target.__name__]
    rounds = dict.fromkeys([target.__name__ for target in targets], 0)
    deadline = time.monotonic() + arguments.seconds
    while True:
        for target in targets:
            try:
                hypothesis.seed(seed)(target)()
            except BaseException:
                print(f"broken: {target.__name__}, --seed {seed} --only {target.__name__}", file=sys.stderr)
                raise
            rounds[target.__name__] += 1
            if time.monotonic() > deadline:
                told = ", ".join(f"{name} {count * _ROUND}" for name, count in rounds.items())
                print(f"no law was broken, examples: {told}")
                return 0
        seed += 1


if __name__ == "__main__":
    sys.exit(main())
