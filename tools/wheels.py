"""Build a CPU wheel for each Python that can be had, and try each in a bare environment.

    make wheels ARGS="--pythons 3.10 3.13"

The wheels land in dist/. A bare environment has the wheel, torch and numpy, nothing else, and runs
from a folder that sees nothing of this checkout. A Python that is not installed is said to be
missing; every other failure ends with status 1.

--torch says how pip gets torch there, e.g. --torch "torch --index-url URL" for one without CUDA.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# A few steps of every structure: what trains is what was selected, and comes back from its file.
TRIAL = """
import torch, sparse_ft as sft
from pathlib import Path
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 12))

for structure in ("rows", "columns", "blocks", "entries"):
    model = net()
    given = {"targets": ["0.weight", "3.weight"], "block_size": (4, 4), "score": "magnitude"}
    plan = sft.select(model, density=0.25, structure=structure, **given)
    sft.convert(model, plan, lean=True)
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=1e-2)
    input = torch.randn(8, 12)
    losses = []
    for _ in range(20):
        loss = (model(input) - input).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0], (structure, losses)
    sft.save_delta(sft.Delta.of(model), "delta")
    trained, loaded = sft.revert(model), net()
    sft.apply(loaded, sft.load_delta("delta"))
    born = net()
    for name, weight in trained.named_parameters():
        assert torch.equal(weight, loaded.get_parameter(name)), name
        if name in plan:
            mask = plan[name].mask(weight.shape)
            assert torch.equal(weight[~mask], born.get_parameter(name)[~mask]), name
            assert not torch.equal(weight, born.get_parameter(name)), name
folder = Path(sft.__file__).parents[1]
assert folder.name == "site-packages", folder
served = {op: devices["cpu"][0] for op, devices in sft.backends().items()}
assert set(served.values()) >= {"native"} and "reference" not in served.values(), served
print(f"sparse_ft {sft.__version__}, torch {torch.__version__}: all ops are served by the wheel")
"""


def run(*command: str | Path, folder: Path = ROOT) -> str:
    """What a command printed; it must succeed."""
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stdout[-3000:]}")
    return done.stdout


def find_python(version: str) -> str | None:
    """The interpreter of a version, on the PATH or among those of pyenv and uv."""
    candidates = [shutil.which(f"python{version}")]
    for home in (Path.home() / ".pyenv/versions", Path.home() / ".local/share/uv/python"):
        candidates += sorted(map(str, home.glob(f"*{version}.*/bin/python{version}")))
    return next((found for found in candidates if found and works(found, version)), None)


def works(python: str, version: str) -> bool:
    """Whether it starts and is of that version: a shim may stand for none."""
    asked = [python, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=60)
    except OSError:
        return False
    return done.stdout.strip() == version


def build(python: str, into: Path) -> Path:
    """A wheel of this checkout, by pip, which fetches what the build needs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(python, "-m", "venv", folder / "build")
        pip = folder / "build/bin/python", "-m", "pip"
        # From a copy of what git knows: nothing left over from other builds can help.
        listed = run("git", "ls-files", "-z").split("\0")
        for tracked in filter(None, listed):
            (folder / "sources" / tracked).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / tracked, folder / "sources" / tracked)
        run(*pip, "wheel", "--no-deps", "-w", folder / "wheel", ".", folder=folder / "sources")
        (wheel,) = (folder / "wheel").glob("*.whl")
        return Path(shutil.copy(wheel, into))


def trial(python: str, wheel: Path, torch: str) -> str:
    """What the wheel says of itself in a bare environment."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(python, "-m", "venv", folder / "bare")
        bare = folder / "bare/bin/python"
        if torch:
            run(bare, "-m", "pip", "install", *torch.split())
        run(bare, "-m", "pip", "install", wheel)
        said = run(bare, "-W", "error::RuntimeWarning", "-c", TRIAL, folder=folder)
        run(bare, "-m", "sparse_ft", folder=folder)
        return said.splitlines()[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pythons", nargs="+", default=PYTHONS, metavar="X.Y")
    parser.add_argument("--torch", default="", metavar="ARGUMENTS", help="of pip install")
    given = parser.parse_args()
    dist = ROOT / "dist"
    dist.mkdir(exist_ok=True)
    failed = False
    os.environ.setdefault("SPARSE_FT_CUDA", "0")
    for version in given.pythons:
        python = find_python(version)
        if python is None:
            print(f"Python {version}: none here", flush=True)
            continue
        try:
            wheel = build(python, dist)
            said = trial(python, wheel, given.torch)
        except RuntimeError as error:
            failed = True
            print(f"Python {version}: FAILED: {error}", flush=True)
            continue
        size = wheel.stat().st_size / 2**20
        print(f"Python {version}: {wheel.name}, {size:.1f} MiB; {said}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
