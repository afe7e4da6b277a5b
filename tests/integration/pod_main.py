"""Process 1 of a task's pod: run the task's command, then carry its outputs to S3.

What KFP's launcher does beside the command. Called as `python3 -c TEXT ADDRESS FOLDER COMMAND...`
in an image that holds `sssflow`.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path


def main(address: str, folder: str, *command: str) -> int:
    """Exit status of the command; 128 and the signal's number if one ended it."""
    task = subprocess.Popen(command, start_new_session=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, _: os.killpg(task.pid, n))
    code = task.wait()
    if code == 0:
        from sssflow.storage.places import open_place, push_tree

        push_tree(Path(folder), open_place(address))
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
