"""vLLM's own loader of weight patches, one file out of its source package: `vllm_source.py FOLDER`
fetches it with pip, for `make test`; nothing else of vLLM is needed.
"""

import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
import types
from pathlib import Path

VERSION = "0.33.0"
INSIDE = "vllm/model_executor/model_loader/checkpoint_weight_patch.py"
# Its metadata cannot be had without these; torch, which is there, must not be fetched again.
BUILD = ["setuptools_rust", "setuptools_scm", "packaging", "wheel"]


def file():
    """The file, or None: below VLLM_SOURCE, or where `make test` has put it."""
    given = os.environ.get("VLLM_SOURCE")
    places = [Path(given) / INSIDE] if given else []
    places.append(Path(sys.prefix) / "vllm" / Path(INSIDE).name)
    return next((place for place in places if place.is_file()), None)


def load():
    """The module. What newer ones ask of the rest of vLLM is answered as for an untied model."""
    utils = types.ModuleType("vllm.model_executor.models.utils")
    utils._get_tied_embedding_params = lambda model: {}
    names = ["vllm", "vllm.model_executor", "vllm.model_executor.models"]
    stand_ins = {name: types.ModuleType(name) for name in names} | {utils.__name__: utils}
    spec = importlib.util.spec_from_file_location("checkpoint_weight_patch", file())
    module = importlib.util.module_from_spec(spec)
    missing = {name: stand_in for name, stand_in in stand_ins.items() if name not in sys.modules}
    sys.modules.update(missing, checkpoint_weight_patch=module)
    try:
        spec.loader.exec_module(module)
    finally:
        for name in missing:
            del sys.modules[name]
    return module


def fetch(folder):
    folder = Path(folder)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    with tempfile.TemporaryDirectory() as temporary:
        build = Path(temporary) / "build"
        subprocess.run([*pip, "install", "--target", build, *BUILD], check=True)
        environment = {
            **os.environ,
            "PYTHONPATH": str(build),
            "VLLM_TARGET_DEVICE": "empty",
            "VLLM_VERSION_OVERRIDE": VERSION,
        }
        source = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
        subprocess.run(
            [*pip, "download", *source, "-d", temporary, f"vllm=={VERSION}"],
            check=True,
            env=environment,
        )
        with tarfile.open(next(Path(temporary).glob("vllm-*.tar.gz"))) as archive:
            content = archive.extractfile(f"vllm-{VERSION}/{INSIDE}").read()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / Path(INSIDE).name).write_bytes(content)


if __name__ == "__main__":
    fetch(sys.argv[1])
