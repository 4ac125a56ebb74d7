"""``throughtime inspect`` on a run of the language job."""

import pytest

from throughtime.cli import inspect as command
from throughtime.errors import UserError
from throughtime.learning import Training
from throughtime.tasks import language
from throughtime.tasks.language import Settings


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text('He said "no" and left.\n' * 300, encoding="utf-8")
    settings = Settings(cell="gru", hidden=8, layers=1)
    language.train(folder / "text.txt", folder / "run", settings, Training(steps=3))
    return folder / "run"


def test_a_run_is_looked_into(run, tmp_path, capsys):
    command.inspect(run, length=20)
    assert "Gradients through time" in (run / "inside.html").read_text(encoding="utf-8")
    command.inspect(run, run.parent / "text.txt", length=30, out=tmp_path / "in.html")
    assert "Units that follow quotes" in (tmp_path / "in.html").read_text(encoding="utf-8")
    assert capsys.readouterr().out.splitlines() == [str(run / "inside.html"), str(tmp_path / "in.html")]


def test_what_cannot_be_read_is_told(run, tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"abc\xff\xfe" * 50)
    (tmp_path / "short.txt").write_text("abc", encoding="utf-8")
    for name, message in (("none.txt", "cannot be read"), ("bad.txt", "not UTF-8"), ("short.txt", "too few")):
        with pytest.raises(UserError, match=message):
            command.inspect(run, tmp_path / name)
    with pytest.raises(UserError):
        command.inspect(tmp_path / "nowhere")
