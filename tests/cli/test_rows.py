"""Files of rows as people have them: what is wrong is told with its line, what is odd is read."""

from pathlib import Path

import pytest

from sparse_ft.cli.data import read_file
from sparse_ft.cli.encoding import classes_of
from sparse_ft.cli.misuse import Misuse

COLUMNS = {"data.text": "text", "data.label": "label"}
HEAD = "text,label\n"
WANTED = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
ODD = {
    "bom.csv": "\ufefftext,label\na,x\nb,y\n",
    "lines.csv": "text,label\r\na,x\r\nb,y\r\n",
    "semicolons.csv": "text;label\na;x\nb;y\n",
    "tabs.csv": "id\ttext\tlabel\n1\ta\tx\n2\tb\ty\n",
    "bars.csv": "text|label\na|x\nb|y\n",
    "spaces.csv": "text , label\na,x\nb,y\n",
    "blank.csv": "text,label\n\na,x\n\nb,y\n\n",
    "commas.csv": "text,label\na,x,,\nb,y,\n",
    "UPPER.CSV": HEAD + "a,x\nb,y\n",
    "table.tsv": "text\tlabel\na\tx\nb\ty\n",
    "lines.jsonl": '{"text": "a", "label": "x"}\n\n{"text": "b", "label": "y", "more": [1]}\n',
}
WRONG = {
    "empty.csv": ("", ("holds no rows with text",)),
    "head.csv": (HEAD, ("holds no rows with text",)),
    "other.csv": ("txt,label\na,x\n", ("data.text", "did you mean 'txt'", "--text NAME")),
    "none.csv": ("a film,x\nb,y\n", ("data.text", "first line", "'a film'")),
    "twice.csv": ("text,text,label\na,b,x\n", ("data.text", "2 columns", "leave one")),
    "comma.csv": (HEAD + "a,x\nb, and c,y\n", ("line 3", "3 columns", "names 2")),
    "short.csv": (HEAD + "a,x\nb\n", ("line 3", "1 column,")),
    "open.csv": (HEAD + 'a,x\n"b,y\nc,x\n', ("begins in line 3", "quote")),
    "quote.csv": (HEAD + '"a" b,x\n', ("line 2", "quote")),
    "unlabelled.csv": (HEAD + "a,x\nb,\n", ("data.label", "row 2", "empty")),
    "nan.csv": (HEAD + "a,x\nb,NaN\n", ("data.label", "row 2", "'NaN'")),
    "broken.jsonl": ('{"text": "a", "label": "x"}\n{"text": \n', ("data.train", "line 2", "JSON")),
    "bare.jsonl": ('{"text": "a", "label": "x"}\n7\n', ("line 2", "7", "object")),
    "list.jsonl": ('{"text": ["a"], "label": "x"}\n', ("data.text", "row 1", "['a']")),
    "labels.jsonl": ('{"text": "a", "label": ["x"]}\n', ("data.label", "row 1", "['x']")),
    "null.jsonl": ('{"text": "a", "label": null}\n', ("data.label", "row 1", "None")),
    "nan.jsonl": ('{"text": "a", "label": NaN}\n', ("data.label", "row 1", "nan")),
    "words.txt": ("a\n\nb\n", ("data.label", "row 1")),
    "sheet.xlsx": ("", ("'.xlsx'", ".csv")),
}


def written(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_bytes(text.encode())
    return file


def why(path: Path) -> str:
    with pytest.raises(Misuse) as told:
        read_file(path, COLUMNS, "data.train")
    return str(told.value)


def test_odd_files_are_read(tmp_path):
    for name, text in ODD.items():
        assert read_file(written(tmp_path, name, text), COLUMNS, "data.train") == WANTED, name
    film = written(tmp_path, "film.csv", HEAD + '"good,\n""very"" good",schön\n悪い,"x\ny"\n')
    rows = read_file(film, COLUMNS, "data.train")
    assert rows[0] == {"text": 'good,\n"very" good', "label": "schön"}
    assert rows[1]["label"] == "x\ny"


def test_wrong_files_are_told_with_key_and_line(tmp_path):
    for name, (text, words) in WRONG.items():
        told = why(written(tmp_path, name, text))
        assert all(word in told for word in words), (name, told)
        assert told.startswith("data."), told
    (tmp_path / "wide.csv").write_bytes("text,label\na,x\n".encode("utf-16"))
    assert "save it as UTF-8" in why(tmp_path / "wide.csv")
    (tmp_path / "folder.csv").mkdir()
    assert "Is a directory" in why(tmp_path / "folder.csv")


def test_rows_without_text_are_left_out_and_told(tmp_path, capsys):
    file = written(tmp_path, "blank.csv", HEAD + "a,x\n ,y\nb,y\n")
    assert read_file(file, COLUMNS, "data.train") == WANTED
    assert "1 of 3 rows hold no text" in capsys.readouterr().out


def test_labels_that_are_no_classes_are_told():
    def rows(*labels: object) -> list[dict[str, str]]:
        return [{"text": "a", "label": str(label)} for label in labels]

    assert classes_of(rows(10, 9, -1, 9), "label") == ["-1", "9", "10"]
    assert classes_of(rows("--1", "2"), "label") == ["--1", "2"]  # no number
    with pytest.raises(Misuse, match="'x'.*two are the least"):
        classes_of(rows(*"xxxx"), "label")
    with pytest.raises(Misuse, match="60 classes in 60 rows, such as '0', '1'.*`label: NAME`"):
        classes_of(rows(*range(60)), "label")
