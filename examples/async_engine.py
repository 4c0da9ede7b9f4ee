"""Training and sampling at once: a trainer sends an engine, in another process, what changed in
each step, and the engine answers with samples of the newest model.

    python examples/async_engine.py [steps, default 20]

The engine stands for vLLM, slime or TRL's: it loads the base once and takes patches after that. The
reward is a toy: sequences that count upwards. At the end both sides must hold the same bits.
"""

import hashlib
import multiprocessing
import sys

import torch
from torch import nn

import sparse_ft as sft

VOCABULARY, LENGTH, BATCH = 32, 12, 64


class Policy(nn.Module):
    """Predicts the next token from the last one; in bfloat16, as engines serve."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 64)
        self.hidden = nn.Linear(64, 256)
        self.head = nn.Linear(256, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.hidden(self.embed(tokens)))).float()


def base() -> Policy:
    torch.manual_seed(0)
    return Policy().bfloat16()


def digest(model: nn.Module) -> str:
    """Of every bit of the weights."""
    told = hashlib.sha256()
    for name, tensor in sorted(sft.state_dict(model).items()):
        told.update(
            name.encode() + tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
        )
    return told.hexdigest()


@torch.no_grad()
def sample(model: nn.Module) -> torch.Tensor:
    """[BATCH, LENGTH] tokens that the model draws, one after the other."""
    tokens = torch.randint(VOCABULARY, (BATCH, 1))
    for _ in range(LENGTH - 1):
        chances = model(tokens[:, -1]).softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(chances, 1)], 1)
    return tokens


def engine(connection) -> None:
    """Take what has arrived, sample, answer; until told to stop."""
    torch.set_num_threads(1)
    model, receiver = base(), sft.deltas.Receiver()
    torch.manual_seed(1)
    while True:
        received = connection.recv()
        if received is None:
            connection.send(digest(model))
            return
        receiver.apply(model, received)
        connection.send((receiver.version, sample(model)))


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, tokens: torch.Tensor) -> float:
    """One step of REINFORCE on samples; returns the mean reward."""
    follows = tokens[:, 1:] == (tokens[:, :-1] + 1) % VOCABULARY
    advantage = follows.float() - follows.float().mean()
    chosen = model(tokens[:, :-1]).log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    (-(advantage * chosen).mean()).backward()
    optimizer.step()
    optimizer.zero_grad()
    return follows.float().mean().item()


def main(steps: int) -> int:
    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")
    mine, other = context.Pipe()
    process = context.Process(target=engine, args=(other,), daemon=True)
    process.start()
    model = base()
    plan = sft.select(model, density=0.05, structure="entries", score="random", targets="h*.weight")
    sft.convert(model, plan | {"embed.weight": sft.Rows(range(0, VOCABULARY, 4))})
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=1e-2)
    entries = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    made = sft.patches(model)
    mine.send(made)
    tokens = sample(model)
    for step in range(steps):
        reward = learn(model, optimizer, tokens)  # while the engine samples from the step before
        version, tokens = mine.recv()
        made = sft.patches(model, since=made)
        mine.send(made)
        share = made.nbytes / entries
        print(f"step {step}: reward {reward:.3f}, sent {made.nbytes} bytes, {share:.2f} an entry")
    mine.recv()
    mine.send(None)
    same = mine.recv() == digest(model)
    process.join(30)
    print("engine and trainer hold the same bits" if same else "engine and trainer DIFFER")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
