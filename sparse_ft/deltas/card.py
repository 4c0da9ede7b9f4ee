"""The model card of a delta: what it is, of which base, and how to use it."""

import importlib.util
import os

from .._atomic import written_whole
from .delta import Delta

CARD = "README.md"
_TEXT = """# {title}

The entries of {base} that fine-tuning changed: {entries} of them, with their new values.

```python
import sparse_ft as sft

delta = sft.load_delta("folder of this file")
sft.apply(model, delta)  # exactly the fine-tuned model
sft.remove(model)  # exactly the base again
```

## What changed

```
{plan}
```
"""


def save_card(delta: Delta, folder: str) -> bool:
    """Write a model card into `folder`; whether that was done.

    It takes huggingface_hub, and a card that is there stays.
    """
    path = os.path.join(folder, CARD)
    if os.path.exists(path) or importlib.util.find_spec("huggingface_hub") is None:
        return False
    with written_whole(path) as file:
        file.write(card_of(delta).encode())
    return True


def card_of(delta: Delta) -> str:
    """The text of the card, its metadata in front."""
    from huggingface_hub import ModelCardData

    name = delta.base_name
    data = ModelCardData(
        base_model=name, library_name="sparse_ft", tags=["sparse-fine-tuning", "delta"]
    )
    text = _TEXT.format(
        title="A sparse delta" if name is None else f"A sparse delta of {name}",
        base=name or "a model",
        entries=f"{delta.entries:,}",
        plan=delta.plan,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}"
