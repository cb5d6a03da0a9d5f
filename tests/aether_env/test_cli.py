"""The command line: what it knows, what it refuses, and that it is quick to answer."""

from __future__ import annotations

import subprocess
import sys

import pytest

from aether_env.cli import COMMANDS, main


def test_help_names_every_command_and_loads_no_torch():
    code = (
        "import sys\nfrom aether_env.cli import main\nmain(['--help'])\n"
        "print([m for m in ('torch', 'tyro') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in COMMANDS)
    assert done.stdout.strip().endswith("[]")


def test_the_help_of_a_command_needs_no_torch_either():
    code = (
        "import sys\nfrom aether_env.cli import main\ntry:\n    main(['evaluate', '--help'])\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--protocol" in done.stdout and done.stdout.strip().endswith("0 False")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_tells_what_it_does(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0 and out.startswith(f"usage: aether {name} ")
    assert "(required)" in out or "(default: " in out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "usage: aether"),
        (["dance"], 2, "there is no command 'dance'"),
        (["reconstruct", "missing.mp4"], 1, "aether reconstruct: video: there is no file or folder 'missing.mp4'"),
        (["evaluate", "no_such_checkpoint"], 1, "neither a bundled one"),
        (["evaluate", "mini", "--clips", "1"], 1, "clips must be at least 2, got 1"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(words, code, said, capsys):
    assert main(words) == code
    out, error = capsys.readouterr()
    assert said in out + error
    assert "Traceback" not in error


def test_debug_shows_where_an_error_was_found():
    with pytest.raises(ValueError, match="clips must be at least 2"):
        main(["evaluate", "mini", "--clips", "1", "--debug"])


def test_a_command_that_is_interrupted_says_so(monkeypatch, capsys):
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("aether_env.commands.plan", interrupted)
    assert main(["plan"]) == 130
    assert capsys.readouterr().err == "aether plan: interrupted\n"
