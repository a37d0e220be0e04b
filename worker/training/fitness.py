"""Does the GPU compute? `python -m worker.training.fitness` tries and prints one line of JSON.

A trainer that finds out in the middle of a job costs that job an attempt.
"""

import json
from typing import Any

import torch

#: Side of the matrices; their product's entries are this number, exact in every dtype below.
_SIDE = 256


def try_gpu() -> dict[str, Any]:
    """What the first visible GPU is, and whether products come out right.

    Returns `ok`, `reason` where it is not, and where there is a GPU its `name`, the `cuda`
    version that PyTorch was built for, `total_bytes` and `free_bytes`.
    """
    if not torch.cuda.is_available():
        return {"ok": False, "reason": "PyTorch sees no CUDA device; is the driver too old?"}
    try:
        free, total = torch.cuda.mem_get_info()
        wrong = [str(dtype) for dtype in _dtypes() if not _multiplies(dtype)]
    except RuntimeError as error:
        return {"ok": False, "reason": str(error).splitlines()[0][:200]}
    return {
        "ok": not wrong,
        "reason": f"products in {', '.join(wrong)} come out wrong" if wrong else "",
        "name": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "total_bytes": total,
        "free_bytes": free,
    }


def _dtypes() -> list[torch.dtype]:
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return [torch.float32, torch.bfloat16 if has_bf16 else torch.float16]


def _multiplies(dtype: torch.dtype) -> bool:
    ones = torch.ones(_SIDE, _SIDE, dtype=dtype, device="cuda")
    return bool(((ones @ ones) == _SIDE).all().item())


if __name__ == "__main__":
    print(json.dumps(try_gpu()))  # noqa: T201 - its only output
