"""`python -m bench`: the benchmarks; `python -m bench plot`: their pictures; `python -m bench --op
methods`: fine-tuning methods beside each other.

See bench/README.md.
"""

import sys

from bench import main, plot

METHODS = ["--op", "methods"]

if __name__ == "__main__":
    if sys.argv[1:3] == METHODS:
        from bench.methods.main import main as run_methods

        raise SystemExit(run_methods(sys.argv[3:]))
    drawing = sys.argv[1:2] == ["plot"]
    raise SystemExit(plot.main(sys.argv[2:]) if drawing else main.main())
