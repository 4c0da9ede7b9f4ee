import pytest

from sparse_ft import ops
from sparse_ft.ops.masked_adamw import masked_adamw_ref_

IMPLEMENTATIONS = {"op": ops.masked_adamw_, "reference": masked_adamw_ref_}


@pytest.fixture(params=IMPLEMENTATIONS)
def adamw_(request):
    return IMPLEMENTATIONS[request.param]
