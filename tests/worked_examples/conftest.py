"""The folders hold files of the examples, whose tests run in a copy of the sources."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # `import example`

collect_ignore = ["elementwise_op", "structure"]
