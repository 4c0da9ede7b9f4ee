"""`python -m bench.methods`, as `python -m bench --op methods`."""

from bench.methods.main import main

if __name__ == "__main__":
    raise SystemExit(main())
