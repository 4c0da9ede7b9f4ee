"""Training where a mask per weight says what trains and changes on the way: every entry by itself.

Dense weights, dense gradients, dense moments and an age an entry; nothing of the package.
"""

import torch

BETAS, EPS = (0.9, 0.999), 1e-8


class DenseMasked:
    """AdamW over the masked entries of `weights`, {name: Parameter}."""

    def __init__(self, weights, masks, lr, weight_decay=0.0, by_entry=True, to_origin=False):
        self.weights, self.lr, self.weight_decay = weights, lr, weight_decay
        self.by_entry, self.to_origin = by_entry, to_origin
        self.origins = {name: w.detach().clone() for name, w in weights.items()}
        self.masks = dict(masks)
        self.values = {name: w.detach().clone() for name, w in weights.items()}
        self.exp_avg = {name: torch.zeros_like(w) for name, w in weights.items()}
        self.exp_avg_sq = {name: torch.zeros_like(w) for name, w in weights.items()}
        self.age = {name: torch.zeros_like(w) for name, w in weights.items()}
        self.factors: dict[str, float | torch.Tensor] = {}  # of updates, 1 where there is none
        self.steps = 0

    def step(self):
        self.steps += 1
        beta1, beta2 = BETAS
        for name, weight in self.weights.items():
            mask, gradient = self.masks[name], weight.grad
            self.age[name] += mask
            age = self.age[name] if self.by_entry else torch.full_like(weight, self.steps)
            m = beta1 * self.exp_avg[name] + (1 - beta1) * gradient
            v = beta2 * self.exp_avg_sq[name] + (1 - beta2) * gradient**2
            self.exp_avg[name] = torch.where(mask, m, 0.0)
            self.exp_avg_sq[name] = torch.where(mask, v, 0.0)
            age = torch.where(mask, age, 1.0)
            corrected = m / (1 - beta1**age)
            root = v.sqrt() / (1 - beta2**age).sqrt()
            old = self.values[name]
            decayed = old - self.origins[name] if self.to_origin else old
            new = old - self.lr * self.weight_decay * decayed
            new = new - self.lr * corrected / (root + EPS)
            new = old + self.factors.get(name, 1.0) * (new - old)
            self.values[name] = torch.where(mask, new, old)
            weight.data.copy_(self.values[name])
            weight.grad = None

    def reselect(self, masks, restore=False):
        for name, mask in masks.items():
            old = self.masks[name]
            kept = old & mask
            for kept_of in (self.exp_avg, self.exp_avg_sq, self.age):
                kept_of[name] = torch.where(kept, kept_of[name], 0.0)
            if restore:
                self.values[name] = torch.where(old & ~mask, self.origins[name], self.values[name])
            self.weights[name].data.copy_(self.values[name])
            self.masks[name] = mask
