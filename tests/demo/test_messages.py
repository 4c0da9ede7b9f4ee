"""Every wrong argument ends with one line that names the option and the trouble, never with a
traceback.
"""

import pytest

pytest.importorskip("tqdm")

from demo import assets, main  # noqa: E402


@pytest.fixture(autouse=True)
def nothing_fetched(monkeypatch):
    monkeypatch.setattr(
        assets, "fetch", lambda: pytest.fail("fetched before the arguments were checked")
    )


def refused(capsys, *argv):
    assert main.main(list(argv)) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "Traceback" not in message
    return message


def csv_file(folder, text):
    path = folder / "data.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--structure", "diagonals"], ["--structure", "diagonals", "columns", "entries_per_row"]),
        (["--methods", "full,magic"], ["--methods", "magic", "lora"]),
        (["--density", "2"], ["--density", "2"]),
        (["--density", "much"], ["--density", "much"]),
        (["--density", "nan"], ["--density", "nan"]),
        (["--density", ""], ["--density"]),
        (["--steps", "0"], ["--steps", "0"]),
        (["--batch-size", "-1"], ["--batch-size", "-1"]),
        (["--lr", "fast"], ["--lr", "fast"]),
        (["--lr", "magic=1e-3"], ["--lr", "magic"]),
    ],
)
def test_wrong_values_are_named(capsys, argv, said):
    message = refused(capsys, *argv)
    assert all(word in message for word in said)


def test_wrong_model_folder(capsys, tmp_path):
    assert "no folder" in refused(capsys, "--model", str(tmp_path / "nowhere"))
    assert "config.json" in refused(capsys, "--model", str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert "no weights" in refused(capsys, "--model", str(tmp_path))


def test_csv_without_the_columns(capsys, tmp_path):
    message = refused(capsys, "--data", csv_file(tmp_path, "review,label\nfine,1\n"))
    assert "text" in message and "review" in message
    assert "no file" in refused(capsys, "--data", str(tmp_path / "nowhere.csv"))
    assert "nothing" in refused(capsys, "--data", csv_file(tmp_path, ""))


def test_csv_that_is_no_text(capsys, tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(b"\xff\xfe\x00\x80,\x81")
    assert "UTF-8" in refused(capsys, "--data", str(path))
