"""`python -m sparse_ft` and `sft.backends()`: every op is listed with what serves it, and why."""

import json
import re
import socket
import subprocess
import sys

import pytest

import sparse_ft as sft
from sparse_ft.module_command import main
from sparse_ft.ops import SERVED, _native


def test_diagnosis_names_every_op_and_device():
    run = subprocess.run(
        [sys.executable, "-m", "sparse_ft"], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    for op in (
        "gather_selected",
        "scatter_selected_",
        "swap_selected_",
        "selected_wgrad",
        "masked_adamw_",
    ):
        assert op in run.stdout
    assert f"sparse_ft {sft.__version__}" in run.stdout and "GPU" in run.stdout


def test_backends_say_what_serves_and_why(capsys):
    served = sft.backends()
    assert set(served) == set(SERVED)
    for op, devices in served.items():
        assert set(devices) == {"cpu", "cuda", "other"}
        assert all(name and why for name, why in devices.values()), op
    assert served["gather_selected"]["cpu"][0] == ("native" if _native.C else "reference")
    assert main([]) == 0
    assert "served by" in capsys.readouterr().out


def test_version_agrees_with_the_package():
    from importlib.metadata import PackageNotFoundError, version

    try:
        assert version("sparse_ft") == sft.__version__
    except PackageNotFoundError:
        pass  # run from a source tree that was not installed


def refused(capsys, *arguments):
    """What the command line says on stderr; it ends with the exit code of a wrong argument."""
    with pytest.raises(SystemExit) as end:
        main(["estimate", *arguments])
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err and not printed.out
    return printed.err


@pytest.mark.parametrize(
    "option, value, expected",
    [
        *(("--batch", value, "a positive integer") for value in ("0", "-3", "many", "1.5", "")),
        *(("--sequence", value, "a positive integer") for value in ("0", "-1", "nan")),
        *(("--density", value, "a share in") for value in ("0", "1.5", "-1", "nan", "much")),
        *(("--lora", value, "a non-negative integer") for value in ("-1", "x")),
    ],
)
def test_wrong_values_are_named_with_their_option(capsys, option, value, expected):
    message = refused(capsys, "config.json", f"{option}={value}")
    assert f"argument {option}: expected {expected}" in message and f"got {value!r}" in message


CONFIGS = {
    "not JSON": ("{", "is not a JSON file"),
    "not text": (b"\xff\xfe", "is not a JSON file"),
    "nested without end": ("[" * 100_000, "is not a JSON file"),
    "a list": ("[1]", "expected an object in .*got a list"),
    "no model type": ("{}", "model_type that transformers does not know, None"),
    "an unknown model type": ('{"model_type": "nothing"}', "model_type .*'nothing'"),
    "a model type that is no string": ('{"model_type": ["llama"]}', "model_type .*llama"),
    "code of its own": (
        (
            '{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel":'
            ' "mine.Model"}}'
        ),
        "code of its own .auto_map., which estimate does not do",
    ),
    "numbers that make no model": (
        '{"model_type": "llama", "hidden_size": "wide"}',
        "no config of a 'llama': .*hidden_size",
    ),
    "no heads": ('{"model_type": "llama", "num_attention_heads": 0}', "no config of a 'llama'"),
    "kernels of a repository": (
        (
            '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1,'
            ' "vocab_size": 8, "attn_implementation": "someone/kernels"}'
        ),
        "kernels to load from a repository",
    ),
}


@pytest.fixture
def alone(monkeypatch):
    """Whoever asks the user or the network fails the test."""

    def forbidden(*_):
        pytest.fail("it asked the user or the network")

    monkeypatch.setattr("builtins.input", forbidden)
    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)


@pytest.mark.parametrize("kind", CONFIGS)
def test_configs_that_are_none(tmp_path, capsys, alone, kind):
    content, expected = CONFIGS[kind]
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert re.search(f"CONFIG.json: .*{expected}", refused(capsys, str(path)))
    assert re.search(f"CONFIG.json: .*{expected}", refused(capsys, str(tmp_path)))


def test_a_folder_without_a_config(tmp_path, capsys, alone):
    assert "config.json" in refused(capsys, str(tmp_path))


SMALL_LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 32,
}


def test_a_known_model_that_brings_code_of_its_own_is_told_without_it(tmp_path, capsys, alone):
    """transformers has a class for it, so that nobody need run the repository's."""
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    own = {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps({**SMALL_LLAMA, **own}))
    assert main(["estimate", str(tmp_path), "--lora", "0", "--sequence", "8"]) == 0
    assert "most at once" in capsys.readouterr().out
