"""What a process prints when its streams cannot take it. Only a process of its own has real streams."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from ddpm.launch.streams import protect_streams
protect_streams()
opened = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
for _ in range(3):
    print("ε" * 70000)
    print("é", file=sys.stderr)
sys.stdout.flush()
os.write(opened, b"whole")
sys.exit(75)
"""


@pytest.mark.parametrize(
    ("shell", "stdout", "stderr"),
    [
        ("exec {program}", "ε", "é\n" * 3),
        ("PYTHONIOENCODING=latin-1 exec {program}", "?", None),
        ("exec {program} > /dev/full", "", "ddpm: output is lost: No space left on device\n" + "é\n" * 3),
        ("exec {program} > /dev/full 2>&1", "", ""),
        ("exec {program} >&- 2>&-", "", ""),
        ("exec {program} <&- >&-", "", "é\n" * 3),
        ("{program} | true; exit ${{PIPESTATUS[0]}}", "", "é\n" * 3),
        ("PYTHONUNBUFFERED=1 {program} | true; exit ${{PIPESTATUS[0]}}", "", "é\n" * 3),
    ],
)
def test_no_write_fails(tmp_path, shell, stdout, stderr):
    program = f"{sys.executable} {tmp_path / 'program.py'} {tmp_path / 'opened'}"
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    done = subprocess.run(["bash", "-c", shell.format(program=program)], capture_output=True)
    assert done.returncode == 75, done.stderr
    assert done.stdout.decode() == (stdout * 70000 + "\n") * 3 * bool(stdout)
    assert stderr is None or done.stderr.decode() == stderr
    assert (tmp_path / "opened").read_bytes() == b"whole"  # it has no number of a closed stream


def test_a_pipe_that_another_process_made_non_blocking_gets_everything(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    read, write = os.pipe()
    os.set_blocking(write, False)
    process = subprocess.Popen([sys.executable, tmp_path / "program.py", tmp_path / "opened"], stdout=write)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert len(pipe.read()) == 3 * (2 * 70000 + 1)
    assert process.wait() == 75
