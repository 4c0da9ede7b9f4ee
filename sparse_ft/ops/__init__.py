"""The ops, each one page: schema, reference, shape function, backends, public function."""

from ._library import SERVED
from .activation import activation, activation_backward
from .batch_norm import batch_norm_
from .batch_norm_backward import batch_norm_backward
from .dense_product import dense_product, serves_dense
from .gated_product import gated_product, gated_product_backward
from .gather_selected import gather_selected
from .masked_adamw import masked_adamw_
from .max_pool import max_pool
from .positive_bits import positive_bits, relu_bits
from .rms_norm import rms_norm
from .rms_norm_backward import rms_norm_backward
from .scatter_selected import scatter_selected_
from .selected_wgrad import prepare_selected_wgrad, selected_wgrad, selected_wgrad_, wgrad_of_kept
from .selected_wgrad_grouped import selected_wgrad_grouped, selected_wgrad_grouped_
from .swap_selected import swap_selected_
from .where_bits import where_bits

__all__ = [
    "SERVED",
    "activation",
    "activation_backward",
    "batch_norm_",
    "batch_norm_backward",
    "dense_product",
    "gated_product",
    "gated_product_backward",
    "gather_selected",
    "masked_adamw_",
    "max_pool",
    "positive_bits",
    "prepare_selected_wgrad",
    "relu_bits",
    "rms_norm",
    "rms_norm_backward",
    "scatter_selected_",
    "serves_dense",
    "selected_wgrad",
    "selected_wgrad_",
    "selected_wgrad_grouped",
    "selected_wgrad_grouped_",
    "swap_selected_",
    "wgrad_of_kept",
    "where_bits",
]
