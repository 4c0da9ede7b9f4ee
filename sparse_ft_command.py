"""Starts `sparse-ft` without importing torch, which `--help` and a typing error do not need.

`import sparse_ft` imports torch. So the package is put into place here with its `__init__` not yet
run, and `sparse_ft.cli.library` runs it when a command comes to need it.
"""

import importlib.util
import sys

EXTRA = "sparse-ft needs {missing}, which is not installed: pip install sparse_ft[cli]"


def main() -> int:
    """Run the command line that the process was started with; returns its exit code."""
    spec = importlib.util.find_spec("sparse_ft")
    if spec is None:
        print("sparse-ft: the package sparse_ft is not installed: pip install sparse_ft[cli]")
        return 2
    sys.modules.setdefault("sparse_ft", importlib.util.module_from_spec(spec))
    try:
        from sparse_ft.cli.main import main as run
    except KeyboardInterrupt:
        print("sparse-ft: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if str(error.name).startswith("sparse_ft"):
            raise
        print(EXTRA.format(missing=error.name), file=sys.stderr)
        return 2
    return run()


if __name__ == "__main__":
    raise SystemExit(main())
