"""No figure without its green test."""

import types

import pytest

pytest.importorskip("tqdm")

from bench import gate, main  # noqa: E402


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "ROOT", tmp_path)
    (tmp_path / "green.py").write_text("def test_it():\n    assert 1\n")
    (tmp_path / "red.py").write_text("def test_it():\n    assert 1 == 2\n")
    return tmp_path


def test_green_passes(root):
    assert "1 passed" in gate.require_green("op", ["green.py"], jobs=1)


def test_red_is_refused_with_the_reason(root):
    with pytest.raises(gate.Red, match="(?s)op: its tests are red.*assert 1 == 2"):
        gate.require_green("op", ["green.py", "red.py"], jobs=1)


def test_what_proves_no_figure_is_left_out(root):
    (root / "green.py").write_text(
        "def test_it():\n    pass\n\ndef test_opcheck():\n    assert 0\n"
    )
    assert "1 passed" in gate.require_green("op", ["green.py"], jobs=1)


def test_missing_tests_are_refused(root):
    with pytest.raises(gate.Red, match="missing .absent.py"):
        gate.require_green("op", ["green.py", "absent.py"])


def test_a_red_op_is_not_measured_and_the_others_are(root, monkeypatch, capsys, tmp_path):
    def no(*arguments):
        raise AssertionError("measured although red")

    red = types.SimpleNamespace(OP="masked_adamw", TESTS=["red.py"], cases=no)
    green = types.SimpleNamespace(OP="linear", TESTS=["green.py"], cases=lambda size: [])
    monkeypatch.setattr(main, "module_of", {"masked_adamw": red, "linear": green}.get)
    monkeypatch.setattr(main, "run_apart", lambda *arguments, hear: ([], []))
    assert main.main(["--op", "masked_adamw,linear", "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert (
        "its tests are red, so it is not measured" in shown.err and "linear: measured" in shown.out
    )
    assert "\nnot measured: masked_adamw\n" in shown.err


def test_green_tests_are_not_run_twice_in_one_command(root, monkeypatch, tmp_path):
    asked = []
    module = types.SimpleNamespace(OP="linear", TESTS=["green.py"], cases=lambda size: [])
    monkeypatch.setattr(main, "module_of", lambda op: module)
    monkeypatch.setattr(main, "require_green", lambda op, tests: asked.append((op, tests)))
    monkeypatch.setattr(main, "run_apart", lambda *arguments, hear: ([], []))
    assert main.main(["--op", "linear,layer", "--out", str(tmp_path)]) == 0
    assert asked == [("linear, layer", ["green.py"]), ("linear", []), ("layer", [])]


def test_every_op_names_tests_that_exist():
    for op in main.OPS:
        module = main.module_of(op)
        assert (
            module.OP == op
            and module.TESTS
            and all((main.machine.ROOT / test).exists() for test in module.TESTS)
        )


@pytest.mark.parametrize(
    ("arguments", "why"),
    [(["--op", "nonsense"], "nonsense"), (["--op", ","], "nothing"), (["--threads", "0"], "0")],
)
def test_bad_arguments_are_named(arguments, why):
    with pytest.raises(SystemExit, match=why):
        main.main(arguments)
