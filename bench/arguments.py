"""What several commands ask of their arguments."""

import argparse


def positive(text: str) -> int:
    """A count of an argument parser, from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number, 1 or more, got {text!r}")
    return int(text)
