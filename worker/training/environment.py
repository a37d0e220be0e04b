"""On what does a result depend bit by bit? Device, threads and versions, and in what two differ."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch

from worker.training.device import device_name

#: Libraries whose version may change a result: in the step, or in what a resume encodes anew.
_LIBRARIES = (
    *("torch", "diffusers", "peft", "accelerate", "transformers", "pillow"),
    "lora-worker",
)


def environment(device: torch.device) -> dict[str, str]:
    """This process's, for training on `device`.

    A CPU sums in an order that depends on the number of threads, and its libraries choose their
    code by its model.
    """
    found = {"device": device_name(device), "machine": platform.machine()}
    if device.type == "cpu":
        found |= {
            "processor": _processor(),
            "instruction set": torch.backends.cpu.get_cpu_capability(),
            "number of threads": str(torch.get_num_threads()),
        }
    return found | {name: version(name) for name in _LIBRARIES}


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What is not the same in two environments, each in a few words."""
    names = dict.fromkeys([*now, *before])
    return [
        f"{name}: {now.get(name, 'not known')} here, {before.get(name, 'not known')} before"
        for name in names
        if now.get(name) != before.get(name)
    ]


def _processor() -> str:
    """The CPU's model as Linux names it; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
