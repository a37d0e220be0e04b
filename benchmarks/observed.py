"""Runs a training program and notes its steps: `python -m benchmarks.observed NOTES PROGRAM …`.

PROGRAM is the path of a script, or the name of a module.
"""

import runpy
import sys
from pathlib import Path

from benchmarks import recorder


def main() -> None:
    notes, program = Path(sys.argv[1]), sys.argv[2]
    sys.argv = sys.argv[2:]
    recorder.observe_steps()
    run = runpy.run_path if program.endswith(".py") else runpy.run_module
    run(program, run_name="__main__")
    recorder.mark("end")
    recorder.write(notes)


if __name__ == "__main__":
    main()
