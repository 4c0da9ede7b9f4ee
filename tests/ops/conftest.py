import pytest

from sparse_ft import ops
from sparse_ft.ops._registry import reference

IMPLEMENTATIONS = {"op": ops.masked_adamw_, "reference": reference("masked_adamw_")}


@pytest.fixture(params=IMPLEMENTATIONS)
def adamw_(request):
    return IMPLEMENTATIONS[request.param]
