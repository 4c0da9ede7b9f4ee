"""`python -m sparse_ft`: the diagnosis of this installation."""

import argparse

from .backends import diagnosis


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m sparse_ft", description="Print versions, hardware, and which implementation serves each op."
    )
    parser.parse_args(argv)
    print(diagnosis())
    return 0
