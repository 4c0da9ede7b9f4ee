"""What was warned of, of what `warnings.catch_warnings(record=True)` has caught."""

from collections.abc import Iterable
from warnings import WarningMessage


def messages_of(caught: Iterable[WarningMessage]) -> list[str]:
    """Of those for users. Others may come at any moment: of a file that a collection closes, of an
    import that happens to be the first.
    """
    return [str(each.message) for each in caught if issubclass(each.category, UserWarning)]
