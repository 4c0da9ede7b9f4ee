"""`python -m bench`: the benchmarks. See bench/README.md."""

from bench.main import main

if __name__ == "__main__":
    raise SystemExit(main())
