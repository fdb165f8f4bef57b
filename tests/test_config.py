"""Settings: every flag has its help, values survive saving, mistakes are one line."""

import dataclasses
import io
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

import demo
from config import DemoSettings, TrainSettings
from runtime.command_line import from_dict, parse, run, to_dict
from runtime.errors import InputError
from runtime.files import atomic_write, read_json, write_json

SCRIPTS = [
    value for name, value in vars(config).items() if name.endswith("Settings") and "out" in value.__annotations__
]


def help_of(cls, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    text = io.StringIO()
    with pytest.raises(SystemExit) as stop, redirect_stdout(text):
        parse(cls, ["--help"])
    assert stop.value.code == 0
    return " ".join(text.getvalue().replace("│", " ").split())


@pytest.mark.parametrize("cls", SCRIPTS, ids=lambda cls: cls.__name__)
def test_every_setting_has_its_help(cls, monkeypatch):
    shown = help_of(cls, monkeypatch)
    source = Path(config.__file__).read_text().splitlines()

    def check(group):
        for field in dataclasses.fields(group):
            nested = field.default_factory if dataclasses.is_dataclass(field.default_factory) else None
            if nested or dataclasses.is_dataclass(field.type):
                check(nested or field.type)
                continue
            (line,) = [x for x in _body(source, group) if x.startswith(f"    {field.name}: ")]
            comment = line.partition("  # ")[2]
            assert len(comment) > 10, f"{group.__name__}.{field.name} has no help"
            assert " ".join(comment.replace("`", "").split())[:40] in shown.replace("`", ""), field.name

    check(cls)


def _body(source, group):
    start = source.index(f"class {group.__name__}:")
    end = next((i for i in range(start + 1, len(source)) if source[i] and not source[i].startswith(" ")), len(source))
    return source[start:end]


def test_settings_survive_saving(tmp_path):
    settings = parse(
        TrainSettings, ["--data", "x", "--out", "r", "--head-widths", "3", "4", "--cache", "c", "--resume"]
    )
    assert settings.model.head_widths == (3, 4) and settings.loader.cache == Path("c") and settings.resume
    write_json(tmp_path / "s.json", to_dict(settings))
    assert from_dict(TrainSettings, read_json(tmp_path / "s.json")) == settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epohcs": 3}, "unknown settings epohcs"),
        ({"epochs": "3"}, "epochs is '3'; it must be of type int"),
        ({"epochs": True}, "epochs is True"),
        ({"model": {"amp": "int8"}}, "amp is 'int8'; allowed: 'auto'"),
        ({"model": {"image": 3}}, "unknown settings image for ModelSettings"),
    ],
)
def test_saved_settings_that_do_not_fit_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        from_dict(TrainSettings, {"data": {"data": "x"}, "out": "r", **change})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "x"], "--out"),
        (["--data", "x", "--out", "y", "--sizze", "3"], "--sizze"),
        (["--data", "x", "--out", "y", "--epochs", "many"], "'many'"),
        (["--data", "x", "--out", "y", "--amp", "int8"], "int8"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as fault:
        parse(TrainSettings, arguments)
    assert "\n" not in str(fault.value) and "│" not in str(fault.value)


def test_files_appear_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a" / "f.txt"
    atomic_write(path, lambda temporary: temporary.write_text("old"))

    def fails(temporary):
        temporary.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        atomic_write(path, fails)
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["f.txt"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setattr(sys, "argv", ["demo.py", str(out)])
        with pytest.raises(SystemExit) as end:
            run(demo.main, DemoSettings)
        printed = capsys.readouterr().err
        assert end.value.code == 2 and printed.count("\n") == 1 and str(tmp_path) in printed


def test_a_killed_process_is_told_of_once():
    code = """
import concurrent.futures, os, signal, config
def killed(*_):
    raise concurrent.futures.BrokenExecutor("a loader process was killed")
signal.signal(signal.SIGCHLD, killed)  # as torch does, for as long as the killed process is its own
try:
    config.run(killed, config.DemoSettings)
finally:
    os.kill(os.getpid(), signal.SIGCHLD)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "x"], cwd=Path(config.__file__).parent, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "was killed, probably" in done.stderr, done.stderr


@pytest.mark.parametrize("world", [1, 2])
def test_a_rank_ends_with_its_status_and_output_but_without_cleaning_up(world):
    code = """
import atexit, config
atexit.register(print, "cleaned up")
config.run(lambda settings: print("done") or 3, config.DemoSettings)
"""
    environment = os.environ | {"WORLD_SIZE": str(world), "RANK": "0", "LOCAL_RANK": "0"}
    folder = Path(config.__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code, "x"], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout.split("\n")[:-1] == (["done", "cleaned up"] if world == 1 else ["done"])
