"""Nothing of this is for a machine without transformers."""

import pytest

pytest.importorskip("transformers")
