"""The commands, run as a user runs them: `main` in this process, and whole processes."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from rnnfast import _checkpoint, _text, _training, cli
from tests.bits import same_bits

pytest.importorskip("safetensors")
pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")

TEXT = "".join(f"{n} green bottles hanging on the wall, {n - 1} to go.\n" for n in range(60, 0, -1))
TINY = ["--hidden", "6", "--batch", "3", "--seq-len", "8"]


def command(*argv, env=None):
    return [sys.executable, "-m", "rnnfast", *map(str, argv)]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "bottles.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished run, and its stdout."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text(TEXT)
    out = str(folder / "model")
    run = subprocess.run(command("train", folder / "text.txt", *TINY, "--steps", 60, "--out", out),
                         capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return out, run


def fails(capsys, argv, *words, code=2):
    """The command ends with `code` and one line on stderr that holds all the words."""
    assert cli.main([str(a) for a in argv]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.strip().splitlines()
    assert len(lines) == 1, shown.err
    assert "Traceback" not in shown.err
    for word in words:
        assert str(word) in lines[0], lines[0]


def tensors(path):
    from safetensors.numpy import load_file

    return load_file(path)


def same_files(a, b):
    """Two run folders hold the same model, checkpoint and curve, down to the bits."""
    for name in ("model.safetensors", "checkpoint.safetensors"):
        x, y = tensors(os.path.join(a, name)), tensors(os.path.join(b, name))
        assert x.keys() == y.keys()
        for key in x:
            same_bits(x[key], y[key], f"{name}:{key}")
    logs = []
    for out in (a, b):
        with open(os.path.join(out, "log.jsonl")) as file:
            logs.append([{k: v for k, v in json.loads(line).items() if k != "seconds"}
                         for line in file])
    assert logs[0] == logs[1]


# ---- train ---------------------------------------------------------------------------------------


def test_train_writes_everything(trained):
    out, run = trained
    assert sorted(os.listdir(out)) == ["checkpoint.safetensors", "log.jsonl", "loss.png",
                                       "model.safetensors"]
    with open(os.path.join(out, "loss.png"), "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    with open(os.path.join(out, "log.jsonl")) as file:
        records = [json.loads(line) for line in file]
    assert [r["step"] for r in records] == list(range(1, 61))
    assert sum("heldout_bits" in r for r in records) == 10
    assert records[-1]["train_bits"] < records[0]["train_bits"]
    for word in ("uniform", "unigram", "5-gram", "this model", "A sample", "rnnfast sample"):
        assert word in run.stdout
    assert "held-out" in run.stderr


def test_reported_figure_is_that_of_the_held_out_text(trained):
    out, _ = trained
    model, training = _checkpoint.load_model(os.path.join(out, "model.safetensors"))
    train, heldout = _text.split(model.encode(TEXT))
    assert training["last_check"]["heldout_bits"] == model.evaluate(heldout)
    assert training["baselines"] == _text.baselines(train, heldout, len(model.vocabulary))


def test_same_command_same_bits(trained, tmp_path, text):
    again = str(tmp_path / "again")
    assert cli.main(["train", text, *TINY, "--steps", "60", "--out", again]) == 0
    same_files(trained[0], again)


@pytest.mark.parametrize("cell, dropout", [("rnn", "0.3"), ("lstm", "0.3"), ("gru", "0")])
def test_resumed_training_gives_the_same_bits(tmp_path, monkeypatch, text, cell, dropout):
    """Stopped at an odd step, inside a pass over the text and between two records."""
    options = [text, *TINY, "--cell", cell, "--layers", "2", "--dropout", dropout,
               "--steps", "130", "--seed", "7"]
    monkeypatch.setattr(_training, "plot", lambda *arguments: b"")  # slow, and not of interest
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    assert cli.main(["train", *options, "--out", whole]) == 0
    for stop in (1, 53, 54, 101):
        with monkeypatch.context() as patch:
            run = _training.Training.run

            def stopping(self, interrupted, stop=stop, run=run):
                for item in run(self, interrupted):
                    if self.step == stop:
                        signal.raise_signal(signal.SIGINT)
                    yield item

            patch.setattr(_training.Training, "run", stopping)
            argv = ["--resume"] if os.path.exists(parts) else options
            assert cli.main(["train", *argv, "--out", parts]) == 130
    assert cli.main(["train", "--resume", "--out", parts]) == 0
    same_files(whole, parts)


def test_interrupted_process_says_how_to_go_on(tmp_path, text):
    out = tmp_path / "my run"
    process = subprocess.Popen(command("train", text, *TINY, "--steps", 200_000, "--out", out),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            if line.startswith("to beat"):
                break
        time.sleep(0.5)  # the handler is in place right after that line
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert f"rnnfast train --resume --out '{out}'" in stderr
    assert stdout == ""
    step = int(stderr.split("after step ")[1].split(";")[0])
    again = subprocess.run(command("train", "--resume", "--out", out, "--steps", step + 5),
                           capture_output=True, text=True, timeout=60)
    assert again.returncode == 0, again.stderr
    assert f"after {step + 5:,} steps" in again.stdout


def test_terminated_process_saves(tmp_path, text, monkeypatch):
    out = str(tmp_path / "out")
    run = _training.Training.run

    def stopping(self, interrupted):
        for item in run(self, interrupted):
            if self.step == 5:
                signal.raise_signal(signal.SIGTERM)
            yield item

    monkeypatch.setattr(_training.Training, "run", stopping)
    assert cli.main(["train", text, *TINY, "--steps", "60", "--out", out]) == 143
    assert _checkpoint.load_checkpoint(os.path.join(out, "checkpoint.safetensors"))[3]["step"] == 5


def test_resume_goes_further(tmp_path, text):
    out = str(tmp_path / "out")
    assert cli.main(["train", text, *TINY, "--steps", "20", "--out", out]) == 0
    assert cli.main(["train", "--resume", "--out", out, "--steps", "30"]) == 0
    with open(os.path.join(out, "log.jsonl")) as file:
        assert json.loads(file.readlines()[-1])["step"] == 30


def test_minutes(tmp_path, text, capsys):
    out = str(tmp_path / "out")
    assert cli.main(["train", text, *TINY, "--minutes", "0.005", "--out", out]) == 0
    with open(os.path.join(out, "log.jsonl")) as file:
        last = json.loads(file.readlines()[-1])
    assert "heldout_bits" in last
    assert 0.3 <= last["seconds"] < 5


def test_several_files_are_joined(tmp_path, text):
    more = tmp_path / "more.txt"
    more.write_bytes("\ufeffAnd ünïcödé\r\nends.\r".encode())
    out = str(tmp_path / "out")
    assert cli.main(["train", text, str(more), *TINY, "--steps", "3", "--out", out]) == 0
    model, _ = _checkpoint.load_model(os.path.join(out, "model.safetensors"))
    assert "ü" in model.vocabulary
    assert not set("\r\ufeff") & set(model.vocabulary)


def test_default_text_trains(tmp_path, capsys):
    out = str(tmp_path / "out")
    assert cli.main(["train", "--hidden", "4", "--steps", "2", "--out", out]) == 0
    assert "Python's language reference" in capsys.readouterr().err


def test_a_heavy_hand_is_told(tmp_path, text, capsys, monkeypatch):
    """A run that diverges ends with one line, not with NaN on disk."""
    monkeypatch.setattr(_training.CharLM, "loss_and_grads",
                        lambda self, x, y, state: (float("nan"), state))
    out = str(tmp_path / "out")
    assert cli.main(["train", text, *TINY, "--steps", "5", "--out", out]) == 1
    assert "diverged at step 1" in capsys.readouterr().err
    assert not os.path.exists(os.path.join(out, "model.safetensors"))


# ---- files ---------------------------------------------------------------------------------------


def test_a_file_is_replaced_only_by_a_complete_one(tmp_path, monkeypatch):
    path = tmp_path / "file"
    _checkpoint.replace(path, b"old")

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            _checkpoint.replace(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
    _checkpoint.replace(path, b"new")
    assert path.read_bytes() == b"new"


def test_disk_full_keeps_the_model(trained, tmp_path, monkeypatch, capsys, text):
    out = str(tmp_path / "out")
    assert cli.main(["train", text, *TINY, "--steps", "10", "--out", out]) == 0
    before = tensors(os.path.join(out, "model.safetensors"))
    capsys.readouterr()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert cli.main(["train", "--resume", "--steps", "20", "--out", out]) == 1
    assert "No space left" in capsys.readouterr().err
    for key, value in tensors(os.path.join(out, "model.safetensors")).items():
        same_bits(value, before[key])


def test_model_file_is_safetensors_with_its_configuration(trained):
    from safetensors import safe_open

    with safe_open(os.path.join(trained[0], "model.safetensors"), framework="np") as file:
        metadata = file.metadata()
    assert metadata["format"] == "rnnfast-charlm"
    assert metadata["version"] == "1"
    assert json.loads(metadata["config"])["vocabulary"] == "".join(sorted(set(TEXT)))


# ---- sample, eval, info --------------------------------------------------------------------------


def test_sample(trained, capsys):
    argv = ["sample", trained[0], "--prime", "9 green", "--length", "40", "--seed", "3"]
    assert cli.main(argv) == 0
    first = capsys.readouterr().out
    assert first.startswith("9 green")
    assert len(first) == len("9 green") + 40 + 1
    assert cli.main(argv) == 0
    assert capsys.readouterr().out == first
    assert cli.main([*argv, "--temperature", "1e-9"]) == 0
    assert capsys.readouterr().out != first


def test_eval(trained, capsys, text):
    path = os.path.join(trained[0], "model.safetensors")
    assert cli.main(["eval", path, text]) == 0
    model, _ = _checkpoint.load_model(path)
    assert capsys.readouterr().out.startswith(f"{model.evaluate(model.encode(TEXT)):.4f} bits")


def test_info(trained, capsys):
    assert cli.main(["info"]) == 0
    assert "numpy" in capsys.readouterr().out
    assert cli.main(["info", trained[0]]) == 0
    shown = capsys.readouterr().out
    for word in ("gru", "hidden        6", "held-out bits", "5-gram bits"):
        assert word in shown


def test_reader_may_leave(trained):
    process = subprocess.Popen(command("sample", trained[0], "--length", 20_000),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 141
    assert error == b""


def test_any_terminal_can_show_a_sample(tmp_path):
    (tmp_path / "t").write_text("äöü€😀" * 100, encoding="utf-8")
    out = str(tmp_path / "out")
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    run = subprocess.run(command("train", tmp_path / "t", *TINY, "--steps", 2, "--out", out),
                         capture_output=True, env=env, timeout=60)
    assert run.returncode == 0, run.stderr
    assert b"\\xe4" in run.stdout


def test_help_starts_without_the_optional_libraries():
    code = ("import sys; from rnnfast.cli import main; code = main(['train', '--help']); "
            "heavy = {'matplotlib', 'tqdm', 'safetensors', 'scipy'} & set(sys.modules); "
            "print(code, sorted(heavy))")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout.splitlines()[-1] == "0 []", run.stdout + run.stderr


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("option, value", [
    ("--hidden", "0"), ("--hidden", "2.5"), ("--hidden", "many"), ("--layers", "0"),
    ("--seq-len", "0"), ("--batch", "-1"), ("--lr", "0"), ("--lr", "nan"), ("--lr", "inf"),
    ("--clip", "-1"), ("--dropout", "1"), ("--dropout", "-0.1"), ("--steps", "0"),
    ("--minutes", "0"), ("--seed", "-1"), ("--cell", "tree"),
])
def test_options_out_of_range(capsys, option, value):
    fails(capsys, ["train", f"{option}={value}"], option, value)


@pytest.mark.parametrize("argv", [
    ["sample", "m", "--temperature", "0"], ["sample", "m", "--temperature=-1"],
    ["sample", "m", "--length=-1"], ["sample"], ["eval", "m"], [], ["tree"],
    ["train", "--steps", "1", "--minutes", "1"],
])
def test_command_lines_that_cannot_be(capsys, argv):
    fails(capsys, argv, "--help")


def test_text_that_cannot_be_read(capsys, tmp_path, text):
    out = tmp_path / "out"
    empty, latin, short = tmp_path / "empty", tmp_path / "latin", tmp_path / "short"
    empty.write_bytes(b"")
    latin.write_bytes("caf\xe9".encode("latin-1"))
    short.write_text("word " * 6)
    train = ["train", "--out", out]
    fails(capsys, [*train, tmp_path / "none"], "none", "No such file")
    fails(capsys, [*train, tmp_path], tmp_path, "directory")
    fails(capsys, [*train, empty], "empty")
    fails(capsys, [*train, latin], "not UTF-8", "0xe9", "offset 3")
    fails(capsys, [*train, short], "27 characters", "window", "--seq-len 32")
    fails(capsys, [*train, text, "--out", text], text, "exists")
    assert not out.exists()


def test_characters_the_model_does_not_know(capsys, trained, tmp_path):
    strange = tmp_path / "strange"
    strange.write_text("9 green\nbott€les", encoding="utf-8")
    fails(capsys, ["eval", trained[0], strange], "U+20AC", "line 2, column 5")
    fails(capsys, ["sample", trained[0], "--prime", "9 Q"], "'Q'", "character 3")
    strange.write_text("9")
    fails(capsys, ["eval", trained[0], strange], "2 characters")
    fails(capsys, ["eval", trained[0], tmp_path / "none"], "No such file")


def rewrite(path, to, change_tensors=None, change_metadata=None):
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(path, framework="np") as file:
        metadata = dict(file.metadata())
        content = {k: file.get_tensor(k) for k in file.keys()}
    if change_tensors:
        change_tensors(content)
    if change_metadata:
        change_metadata(metadata)
    save_file(content, to, metadata or None)


def configuration(**changes):
    def change(metadata):
        metadata["config"] = json.dumps(json.loads(metadata["config"]) | changes)

    return change


@pytest.mark.parametrize("name, tensor, metadata, words", [
    ("transposed", lambda t: t.update({"output.weight": t["output.weight"].T.copy()}), None,
     ["output.weight", "shape"]),
    ("bias", lambda t: t.update({"output.bias": t["output.bias"][1:].copy()}), None,
     ["output.bias", "shape"]),
    ("missing", lambda t: t.pop("recurrent.bias_hh_l0"), None, ["recurrent.bias_hh_l0"]),
    ("gone", lambda t: t.pop("output.weight"), None, ["output.weight"]),
    ("more", lambda t: t.update({"extra": np.zeros(3)}), None, ["extra"]),
    ("integers", lambda t: t.update({"output.bias": np.zeros(t["output.bias"].shape, int)}), None,
     ["output.bias", "real"]),
    ("cell", None, configuration(cell="lstm"), ["shape"]),
    ("tree", None, configuration(cell="tree"), ["cell"]),
    ("hidden", None, configuration(hidden=10**12), ["shape"]),
    ("layers", None, configuration(layers=10**9), ["layer"]),
    ("text", None, configuration(layers="two"), []),
    ("unknown", None, configuration(colour="red"), ["colour"]),
    ("nometa", None, lambda m: m.clear(), ["format"]),
    ("noconfig", None, lambda m: m.pop("config"), ["configuration"]),
    ("notdict", None, lambda m: m.update(config="[1]"), []),
    ("notjson", None, lambda m: m.update(config="{"), ["JSON"]),
    ("version", None, lambda m: m.update(version="99"), ["version 99"]),
    ("training", None, lambda m: m.update(training="[1]"), ["training"]),
])
def test_model_files_that_do_not_fit(capsys, trained, tmp_path, name, tensor, metadata, words):
    bad = str(tmp_path / name)
    rewrite(os.path.join(trained[0], "model.safetensors"), bad, tensor, metadata)
    for argv in (["sample", bad, "--length", 1], ["eval", bad, __file__], ["info", bad]):
        fails(capsys, argv, bad, *words)


def test_model_files_cut_short(capsys, trained, tmp_path):
    with open(os.path.join(trained[0], "model.safetensors"), "rb") as file:
        data = file.read()
    bad = tmp_path / "bad"
    for size in (0, 5, 8, 100, len(data) // 2, len(data) - 1):
        bad.write_bytes(data[:size])
        fails(capsys, ["info", bad], bad, "cut short")
    fails(capsys, ["info", tmp_path / "none"], "No such file")
    fails(capsys, ["sample", tmp_path], "model.safetensors", "No such file")
    fails(capsys, ["info", os.path.join(trained[0], "checkpoint.safetensors")], "format")


def test_resume_of_what_cannot_go_on(capsys, trained, tmp_path, text):
    out = tmp_path / "out"
    fails(capsys, ["train", "--resume", "--out", out], "nothing to resume")
    fails(capsys, ["train", "--resume", "--out", trained[0]], "--steps")
    fails(capsys, ["train", "--resume", "--out", trained[0], "--steps", 99, "--hidden", 7],
          "--hidden")
    fails(capsys, ["train", text, "--resume", "--out", trained[0], "--steps", 99], "FILE")
    assert cli.main(["train", text, *TINY, "--steps", "5", "--out", str(out)]) == 0
    capsys.readouterr()
    again = ["train", "--resume", "--out", out, "--steps", 9]
    with open(text, "a") as file:
        file.write("More text.\n")
    fails(capsys, again, "text", "not the one")
    os.unlink(text)
    fails(capsys, again, text, "No such file")
    path = out / "checkpoint.safetensors"
    rewrite(path, tmp_path / "bad", None, lambda m: m.update(run="{}"))
    os.replace(tmp_path / "bad", path)
    fails(capsys, again, "checkpoint")
    path.write_bytes(path.read_bytes()[:-7])
    fails(capsys, again, "cut short")


@pytest.mark.parametrize("missing", ["tqdm", "matplotlib", "safetensors"])
def test_missing_library(capsys, monkeypatch, tmp_path, text, missing):
    for name in list(sys.modules):
        if name.partition(".")[0] == missing:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    fails(capsys, ["train", text, "--out", tmp_path / "out"], missing,
          'pip install "rnnfast[cli]"')
    if missing == "safetensors":
        fails(capsys, ["info", text], missing, 'pip install "rnnfast[cli]"')


def test_progress_bar_shows_what_matters(tmp_path, text, monkeypatch):
    """On a terminal; a stream that calls itself one stands in for it."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    argv = ["train", text, *TINY, "--steps", "40", "--out", str(tmp_path / "out")]
    assert cli.main(argv) == 0
    last = shown.getvalue().split("\r")[-1]
    for word in ("100%", "40/40 steps", "left", "loss", "bits/char", "chars/s"):
        assert word in last, last
