"""`pytest bench` runs from anywhere: the repository's root is importable.

Two options choose what is measured.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))


def pytest_addoption(parser):
    parser.addoption(
        "--size",
        default="quick",
        choices=("tiny", "quick", "full"),
        help="which cases (default: quick)",
    )
    parser.addoption(
        "--provider", default="ours", help="which provider of each case (default: ours)"
    )
