"""What axolotl's config may hold for `SparsePlugin`."""

from typing import Any

from pydantic import BaseModel


class SparseArguments(BaseModel):
    """axolotl refuses keys of its config that no model has. `SparsePlugin.register` checks ours."""

    sparse_ft: dict[str, Any] | None = None
