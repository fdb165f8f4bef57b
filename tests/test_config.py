"""Settings: every flag has its help, values survive saving, old files load, mistakes are one line."""

import dataclasses
import io
import typing
from concurrent.futures import BrokenExecutor
from contextlib import redirect_stdout
from pathlib import Path

import pytest

import config
from config import AblationSettings, PredictSettings, TrainSettings, TuningSettings
from runtime.command_line import RENAMED, from_dict, parse, run, to_dict
from runtime.errors import InputError
from runtime.files import read_json, write_json
from tests.scripts import ROOT, launch

CLASSES = [value for name, value in vars(config).items() if name.endswith("Settings")]
SCRIPTS = ("train", "tuning", "test", "predict", "synthesis", "pretrain", "benchmark", "demo")


# Help ---------------------------------------------------------------------------------------------------------------


def fields_of(cls):
    """Every field of a settings class and of the groups in it, each with the class that it is written in."""
    for field in dataclasses.fields(cls):
        group = field.default_factory if dataclasses.is_dataclass(field.default_factory) else field.type
        if dataclasses.is_dataclass(group):
            yield from fields_of(group)
        else:
            yield cls, field.name


def comment_of(cls, name):
    """The comment on a field's line in config.py."""
    lines = (ROOT / "config.py").read_text().splitlines()
    start = lines.index(f"class {cls.__name__}:")
    return next(line.partition("  # ")[2] for line in lines[start:] if line.startswith(f"    {name}: "))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_setting_has_help(cls, monkeypatch):
    """The comment on a field's line is what --help shows for its flag."""
    monkeypatch.setenv("COLUMNS", "250")
    text = io.StringIO()
    with pytest.raises(SystemExit) as stop, redirect_stdout(text):
        parse(cls, ["--help"])
    assert stop.value.code == 0
    shown = " ".join(text.getvalue().replace("│", " ").split())
    for owner, name in fields_of(cls):
        comment = comment_of(owner, name)
        assert len(comment) > 10, f"{owner.__name__}.{name} has no help"
        assert " ".join(comment.split())[:40] in shown, name


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_nothing_heavy(script):
    """--help answers without numpy, cv2 and torch, which take seconds to import."""
    code = (
        "import runpy, sys\n"
        "try:\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n"
        "    print(sorted({'numpy', 'cv2', 'torch', 'PIL', 'scipy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = launch("-c", f"import sys; sys.argv = ['{script}.py', '--help']; sys.path.insert(0, '.')\n{code}")
    assert done.returncode == 0 and "show this help" in done.stdout and done.stderr == "[]\n", done.stderr


# Saving and loading -------------------------------------------------------------------------------------------------


def example(cls):
    """Settings of a class with its defaults; paths and numbers where it has none."""
    values = {}
    for name, hint in typing.get_type_hints(cls).items():
        field = cls.__dataclass_fields__[name]
        if dataclasses.is_dataclass(hint):
            values[name] = example(hint)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            values[name] = Path("x") if hint is Path else (Path("x"),)
    return cls(**values)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_settings_survive_saving(cls, tmp_path):
    """What was written as JSON is read as the same settings."""
    write_json(tmp_path / "s.json", to_dict(example(cls)))
    assert from_dict(cls, read_json(tmp_path / "s.json")) == example(cls)


def test_given_settings_survive_saving():
    """Tuples, paths and switches from the command line come back as what they were."""
    arguments = ["--data", "x", "--out", "r", "--head-widths", "3", "4", "--cache", "c", "--resume"]
    settings = parse(TrainSettings, arguments)
    assert settings.model.head_widths == (3, 4) and settings.loader.cache == Path("c") and settings.resume
    assert from_dict(TrainSettings, to_dict(settings)) == settings
    given = PredictSettings(paths=(Path("a"), Path("b")), out=Path("o"), num_workers=3)
    assert from_dict(PredictSettings, to_dict(given)) == given


def with_old_names(values):
    """Saved settings as they were written before the settings got their present names."""
    old = {new: name for name, new in RENAMED.items() if new != "target_fpr"} | {"target_fpr": "max_false_alarms"}
    if not isinstance(values, dict):
        return values
    return {old.get(name, name): with_old_names(value) for name, value in values.items()}


def test_old_names_are_understood():
    """settings.json and checkpoints that were written before the renaming load as the same settings."""
    met = set()
    for cls in (TrainSettings, TuningSettings, config.TestSettings, PredictSettings, AblationSettings):
        saved = with_old_names(to_dict(example(cls)))
        met |= {name for name in RENAMED if f"'{name}'" in str(saved)}
        if cls is TrainSettings:
            saved["model"]["preset"] = "method"
        assert from_dict(cls, saved) == example(cls)
    assert met == set(RENAMED)


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
def test_wrong_saved_settings_are_refused(change, message):
    """Unknown names, wrong types and values that are not allowed are named."""
    with pytest.raises(InputError, match=message):
        from_dict(TrainSettings, {"data": {"data": "x"}, "out": "r", **change})


# Command line -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "x"], "--out"),
        (["--data", "x", "--out", "y", "--sizze", "3"], "--sizze"),
        (["--data", "x", "--out", "y", "--epochs", "many"], "'many'"),
        (["--data", "x", "--out", "y", "--amp", "int8"], "int8"),
    ],
)
def test_typing_mistakes_are_one_line(arguments, message):
    """A missing, unknown or unreadable flag is one line without tyro's box around it."""
    with pytest.raises(InputError, match=message) as fault:
        parse(TrainSettings, arguments)
    assert "\n" not in str(fault.value) and "│" not in str(fault.value)


def test_out_below_a_file(tmp_path):
    """A folder that cannot be made, because a file is in its place or above it, is one line."""
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        done = launch("demo.py", out)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and str(tmp_path) in done.stderr


@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        (InputError("no\nsuch \x1b[31mcolour"), 2, "error: no such \\x1b[31mcolour"),
        (FileNotFoundError("x.png does not exist"), 2, "error: x.png does not exist"),
        (OSError(28, "No space left on device"), 2, "No space left on device; free some space"),
        (BrokenExecutor(), 2, "was killed, probably because memory ran out"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_mistakes_end_with_one_line(fault, status, message, capsys):
    """What the user or the machine did wrong is one line on stderr and an exit status."""

    def fails(settings):
        raise fault

    with pytest.raises(SystemExit) as end:
        run(fails, None)
    printed = capsys.readouterr().err
    assert end.value.code == status and printed.count("\n") == 1 and message in printed


def test_faults_keep_their_traceback():
    """A fault of the program is no mistake of the user."""
    with pytest.raises(ZeroDivisionError):
        run(lambda settings: 1 // 0, None)


def test_killed_process_is_reported_once():
    """torch's handler for ended children would raise a second time while the script is ending."""
    code = """
import concurrent.futures, os, signal
from runtime.command_line import run
def killed(*_):
    raise concurrent.futures.BrokenExecutor("a loader process was killed")
signal.signal(signal.SIGCHLD, killed)  # as torch does, for as long as the killed process is its own
try:
    run(killed, None)
finally:
    os.kill(os.getpid(), signal.SIGCHLD)
"""
    done = launch("-c", code)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "was killed, probably" in done.stderr, done.stderr


@pytest.mark.parametrize("world", [1, 2])
def test_ranks_end_without_cleaning_up(world):
    """A rank ends with its status and its output, but nothing runs at its exit; a single process ends as usual."""
    code = """
import atexit
from runtime.command_line import run
atexit.register(print, "cleaned up")
run(lambda settings: print("done") or 3, None)
"""
    done = launch("-c", code, env={"WORLD_SIZE": str(world), "RANK": "0", "LOCAL_RANK": "0"})
    assert done.returncode == 3, done.stderr
    assert done.stdout.split("\n")[:-1] == (["done", "cleaned up"] if world == 1 else ["done"])
