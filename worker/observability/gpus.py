"""How busy and how full are the GPUs? As the driver's own tool tells, without torch."""

import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

#: How long the tool may take, seconds.
_QUERY_SECONDS = 5.0

_FIELDS = "index,name,memory.used,memory.total,utilization.gpu,temperature.gpu,driver_version"

_MIB = 1024 * 1024


@dataclass(frozen=True)
class GpuReading:
    """One GPU now. Memory in bytes; utilisation 0 to 1 and temperature in °C where told."""

    index: str
    name: str
    memory_used_bytes: int
    memory_total_bytes: int
    utilization: float | None
    celsius: float | None
    driver: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dict(vars(self))


def read_gpus() -> list[GpuReading]:
    """Every GPU of this machine; empty where there is none or the tool does not answer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        answer = subprocess.run(  # noqa: S603 - the driver's own tool, no input of others
            [tool, f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_QUERY_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_readings(answer.stdout)


def parse_readings(text: str) -> list[GpuReading]:
    """The tool's table; a line that is not one, and a figure that is not one, are left out."""
    readings = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(_FIELDS.split(",")) or not cells[0].isdigit():
            continue
        used, total, busy, celsius = (_number(cell) for cell in cells[2:6])
        readings.append(
            GpuReading(
                index=cells[0],
                name=cells[1],
                memory_used_bytes=int((used or 0) * _MIB),
                memory_total_bytes=int((total or 0) * _MIB),
                utilization=None if busy is None else busy / 100,
                celsius=celsius,
                driver=cells[6],
            )
        )
    return readings


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None  # "[N/A]", on cards that do not tell
