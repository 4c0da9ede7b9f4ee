"""What annotations alone are made of."""

from typing import Any

# An nn.Module that is known to have certain attributes. Torch's own annotations say of any that it
# is a tensor or a module, whatever it is.
AnyModule = Any
