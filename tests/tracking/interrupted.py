"""Log in runs of one store and be interrupted at random moments: run as `python -m tests.tracking.interrupted`."""

import os
import random
import signal
import threading
import time

from ultrasound import errors
from ultrasound.tracking import runs

TIMES = 40


def main() -> None:
    """Print how often the store was locked or the interruption got lost, and how the runs ended."""
    random.seed(0)
    for number in range(TIMES):
        errors.raise_on_signals()
        try:
            with runs.run("train", f"run-{number}", {}, {}):
                threading.Timer(random.uniform(0.001, 0.1), os.kill, (os.getpid(), signal.SIGINT)).start()
                for step in range(10_000):
                    runs.log_metrics({"loss": step, "score": -step}, "train")
        except KeyboardInterrupt:
            before = time.monotonic()
            errors.raise_on_signals()
            with runs.run("after", f"after-{number}", {}, {}):
                runs.log_metrics({"seconds": time.monotonic() - before}, "after")


if __name__ == "__main__":
    main()
