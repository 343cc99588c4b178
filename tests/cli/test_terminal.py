"""What a person sees on a terminal: a pseudo-terminal of its own, read as a screen shows it."""

from __future__ import annotations

import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from fcntl import ioctl

import pytest

PROGRAM = "from sparkml_sgdals.cli import main; main()"


def screen(text):
    """Lines of a terminal after it was sent a text."""
    lines, row, column = [[]], 0, 0
    for code, count, kind, letter in re.findall(r"(\x1b\[\??([\d;]*)([A-Za-z]))|([^\x1b])", text,
                                                re.S):  # fmt: skip
        if code and kind == "A":
            row = max(0, row - int(count or 1))
        elif code and kind == "K":
            lines[row] = [] if count == "2" else lines[row][:column]
        elif letter == "\n":
            row, column = row + 1, 0
            lines += [[] for _ in range(row + 1 - len(lines))]
        elif letter == "\r":
            column = 0
        elif letter:
            lines[row] += [" "] * (column + 1 - len(lines[row]))
            lines[row][column] = letter
            column += 1
    return ["".join(line).rstrip() for line in lines]


def on_a_terminal(program, *words):
    """Run a program of Python there; return its exit code, its screen and all that it sent."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 120, 0, 0))
    names = {k: v for k, v in os.environ.items() if not k.startswith(("SPARK_", "COLUMNS"))}
    names |= {"TERM": "xterm", "SPARK_LOCAL_IP": "127.0.0.1"}
    with subprocess.Popen([sys.executable, "-c", program, *map(str, words)], stdin=theirs,
                          stdout=theirs, stderr=theirs, env=names) as process:  # fmt: skip
        os.close(theirs)
        sent = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:
                break
            if not piece:
                break
            sent += piece
        os.close(ours)
    text = sent.decode()
    return process.returncode, screen(text), text


def test_rows_and_a_bar_do_not_run_into_each_other():
    program = (
        "import time\nfrom sparkml_sgdals.cli.output import Output\n"
        "out = Output()\n"
        "with out.phase('Learning', 'ratings') as phase:\n"
        "    for n in range(4):\n"
        "        out.row([f'row {n}'], [10])\n"
        "        phase.update(18_000 * n, None, f'in {n} micro-batches')\n"
        "        time.sleep(0.15)\n"
        "with out.phase('Sending', 'rows') as phase:\n"
        "    phase.update(3, 10)\n    time.sleep(0.3)\n"
    )
    code, shown, sent = on_a_terminal(program)
    assert code == 0
    assert [line.strip() for line in shown[:4]] == [f"row {n}" for n in range(4)]
    assert shown[4].split("  ")[-1].endswith("54,000 ratings in 3 micro-batches")
    assert " of " not in shown[4]
    assert "3 of 3 rows" in shown[5]
    assert "?" not in "".join(shown)
    assert "3 of 10 rows" in sent


@pytest.mark.long
def test_a_fit_says_what_it_does_from_the_first_second_on(small, tmp_path):
    names = {"user": "userId", "item": "movieId", "time": "timestamp"}
    small.rename(columns=names).to_csv(tmp_path / "ratings.csv", index=False)
    code, shown, sent = on_a_terminal(
        PROGRAM, "fit", tmp_path / "ratings.csv", tmp_path / "model", "-P", "rank=4",
        "--conf", "spark.ui.enabled=false",
    )  # fmt: skip
    assert code == 0, sent
    phases = [line.split()[1] for line in shown if line.startswith("✓")]
    assert phases == ["Starting", "Looking", "Reading", "Learning", "Judging", "Saving"]
    assert re.search(r"Learning .* \d+ of \d+ steps RMSE \d", "\n".join(shown))
    # what Spark and its JVM say is in its log
    assert not re.search(r"WARN|log4j|incubator|NativeCodeLoader", sent)


@pytest.mark.nightly
def test_where_spark_fails_its_log_is_named_and_stays(small, tmp_path):
    names = {"user": "userId", "item": "movieId", "time": "timestamp"}
    small.rename(columns=names).to_csv(tmp_path / "ratings.csv", index=False)
    log = tmp_path / "spark.log"
    code, shown, sent = on_a_terminal(
        PROGRAM, "fit", tmp_path / "ratings.csv", tmp_path / "model", "--spark-log", log,
        "--master", "nonsense", "--conf", "spark.ui.enabled=false",
    )  # fmt: skip
    assert code == 1
    assert any(line.startswith("Error: Spark did not start:") for line in shown)
    assert f"Spark's log: {log}" in sent.replace("\r\n", "")
    assert "Traceback" not in sent
    assert "\tat org.apache" not in sent
    assert "org.apache.spark" in log.read_text()


@pytest.mark.long
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.nightly)]
)
def test_a_stream_ends_when_it_is_asked_to(number, small, tmp_path):
    """As a container or a person ends it: after the batch that runs, with 0 and without a trace."""
    names = {"user": "userId", "item": "movieId", "time": "timestamp"}
    (tmp_path / "in").mkdir()
    small.rename(columns=names).to_csv(tmp_path / "in" / "a.csv", index=False)
    alive = tmp_path / "alive"
    words = ["stream", tmp_path / "model", tmp_path / "in", "--every", "1 second", "--json",
             "--alive-file", alive, "-P", "rank=2", "--conf", "spark.ui.enabled=false"]  # fmt: skip
    env = {k: v for k, v in os.environ.items() if not k.startswith("SPARK_")}
    env |= {"SPARK_LOCAL_IP": "127.0.0.1"}
    with subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, words)], env=env, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # fmt: skip
        line = process.stdout.readline()
        assert alive.exists() or process.poll() is None
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    assert '"ratings": 4000' in line
    assert process.returncode == 0, said
    assert "Traceback" not in said
