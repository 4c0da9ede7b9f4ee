"""A vision transformer learns a new kind of pictures, a few of its columns and its new head.

    python examples/vision_transformer.py

Put your own model and pictures in the place of the stand-ins: anything that
`model(pixel_values=…, labels=…).loss` takes.
"""

import torch
from transformers import ViTConfig, ViTForImageClassification

import sparse_ft as sft

CLASSES, SIZE, BATCH = 3, 16, 16


def load():
    """ViTForImageClassification.from_pretrained(…, num_labels=CLASSES), of yours."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4)
    looks = dict(image_size=SIZE, patch_size=4, num_labels=CLASSES, initializer_range=0.2)
    return ViTForImageClassification(ViTConfig(num_hidden_layers=2, **sizes, **looks))


def pictures(count, seed):
    """Batches of noise with one bright colour, which is the class."""
    draw = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        images = torch.randn(BATCH, 3, SIZE, SIZE, generator=draw)
        labels = torch.randint(CLASSES, (BATCH,), generator=draw)
        images[torch.arange(BATCH), labels] += 1
        batches.append({"pixel_values": images, "labels": labels})
    return batches


model, training, held_out = load(), pictures(40, seed=1), pictures(4, seed=2)
plan = sft.select(model, density=0.05, structure="columns", batches=training[:4])
plan = plan | sft.Plan.match(model, {"classifier.*": "all"})
print(sft.convert(model, plan, lean=True))
optimizer = sft.SelectiveAdamW(model.parameters(), lr=5e-3)
model.train()
for batch in training:
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"loss {loss.item():.4f}")

sft.revert(model)  # plain classes, trained weights
model.eval()
with torch.no_grad():
    right = [model(each["pixel_values"]).logits.argmax(-1) == each["labels"] for each in held_out]
print(f"accuracy {torch.cat(right).float().mean().item():.3f}")
model.save_pretrained("trained")
