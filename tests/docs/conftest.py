"""The site is made from the repository's root and is not installed.

Importable, but behind the installed packages.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))
