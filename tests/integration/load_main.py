"""In a pod: send volumes to a server until a file `stop` lies beside this one; a line for each.

Called as `python3 load_main.py ADDRESS VOLUMES`; VOLUMES 0: until it is told to stop. A volume is
40 slices of one model that gives their double.
"""

import json
import sys
from pathlib import Path

import numpy as np

from sssflow.serving.client import Job, TritonClient
from sssflow.serving.config import ClientConfig

SLICES = 40
STOP = Path(__file__).with_name("stop")


def volume(client: TritonClient, seed: int) -> dict[str, object]:
    """Which slices came, how often, and how long each took."""
    slices = np.random.default_rng(seed).random((SLICES, 1 << 16), np.float32)
    jobs = [Job(i, "echo", {"x": x}, ("y",)) for i, x in enumerate(slices)]
    keys, wrong, seconds = [], 0, []
    for key, answer in client.run_all(jobs, note=seconds.append):
        keys.append(key)
        wrong += not np.array_equal(answer["y"], 2 * slices[key])
    return {"keys": sorted(keys), "wrong": wrong, "ms": [round(1000 * s, 1) for s in seconds]}


def main(address: str, volumes: str) -> None:
    """An error of the client ends it."""
    with TritonClient(ClientConfig(url=address, concurrency=4, deadline_s=30)) as client:
        number = 0
        while not STOP.exists() and (int(volumes) == 0 or number < int(volumes)):
            print(json.dumps(volume(client, number)), flush=True)
            number += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
