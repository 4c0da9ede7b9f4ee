"""`python -m bench`: the benchmarks; `python -m bench plot`: their pictures.

See bench/README.md.
"""

import sys

from bench import main, plot

if __name__ == "__main__":
    drawing = sys.argv[1:2] == ["plot"]
    raise SystemExit(plot.main(sys.argv[2:]) if drawing else main.main())
