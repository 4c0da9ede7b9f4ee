"""python -m differential [N] [SEED]: run the cases SEED to SEED + N - 1 (tests/ on PYTHONPATH).

Each failure is made small.
"""

import sys
import time
import traceback

import torch
from helpers.vision import make_importable

from .case import draw
from .compare import Refused, failure
from .minimise import minimised, program

if __name__ == "__main__":
    make_importable()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    number, first = (
        int(sys.argv[i]) if len(sys.argv) > i else default for i, default in ((1, 400), (2, 0))
    )
    begin, refused, failed = time.monotonic(), 0, []
    for seed in range(first, first + number):
        try:
            found = failure(draw(seed))
        except Refused as error:
            refused += 1
            print(f"seed {seed}: torch refuses: {str(error)[:100]}", flush=True)
            continue
        except Exception:
            found = "harness: " + traceback.format_exc()
        if found:
            failed.append(seed)
            print(f"--- seed {seed}: {found[-600:]}", flush=True)
            if "-m" in sys.argv:
                case, found = minimised(draw(seed), 20)
                print(program(case), "\n#", found[-700:], flush=True)
    print(
        f"{number} cases from {first}, {refused} refused by torch, {time.monotonic() - begin:.0f}"
        f" s; failed: {failed}"
    )
