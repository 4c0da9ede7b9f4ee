"""The measured peaks come from the benchmarks, which run from the root and are not installed.

Behind the installed packages.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))
