"""Optimizers of kept libraries on the adapter's weights: given gradients, counted, saved whole.

Their arithmetic is their own. What differs is what they are put on: Prodigy and 8-bit AdamW treat
every element alike and have the one buffer; Adafactor factorises matrices and has the weights.
"""

import contextlib
import importlib
import sys
from importlib.metadata import version
from typing import Any

import torch
from transformers import Adafactor

from worker.contract.errors import ErrorCode, JobError
from worker.contract.parameters import TrainingParameters
from worker.training.adapter_weights import AdapterWeights

#: The package that an optimizer comes from, where it is not one that is always there.
_PACKAGES = {"prodigy": "prodigyopt", "adamw8bit": "bitsandbytes"}

#: A state's entry that a library keeps as a Python number.
_COUNT = "step"

#: Elements from which on bitsandbytes keeps 8-bit moments, and those that share one scale.
_MIN_8BIT_SIZE, _8BIT_BLOCK, _8BIT_CODES = 4096, 256, 256


def refuse_missing_package(optimizer: str) -> None:
    """Raise `JobError` `INVALID_JOB` where this machine does not have what `optimizer` needs."""
    if optimizer in _PACKAGES:
        _package(optimizer)


def package_version(optimizer: str) -> dict[str, str]:
    """Name and version of the package that `optimizer` comes from; empty where it needs none."""
    name = _PACKAGES.get(optimizer)
    return {name: version(name)} if name else {}


class LibraryOptimizer(torch.optim.Optimizer):
    """A library's optimizer behind one that has the buffer, for the scaler and the schedule.

    Its state is saved by the library's parameters: one with all the buffer, or each weight. With
    the first goes what the library keeps beside the tensors (`group.*`) and the number of steps.
    """

    def __init__(self, adapter: AdapterWeights, library: torch.optim.Optimizer) -> None:
        """Take `library`, whose parameters are the adapter's buffer or its weights, in order."""
        [group] = library.param_groups
        super().__init__([adapter.buffer], {"lr": group["lr"]})
        self._adapter, self._library, self._group = adapter, library, group
        self._by_weight = group["params"][0] is not adapter.buffer
        #: Steps that were not skipped. On the CPU: nothing waits for the device to count.
        self.steps_done = torch.zeros((), dtype=torch.int64)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step with the gradient in the buffer and the learning rate of the schedule."""
        self._group["lr"] = float(self.param_groups[0]["lr"])
        buffer = self._adapter.buffer
        if self._by_weight and buffer.grad is not None:
            for name, gradient in self._adapter.views(buffer.grad).items():
                self._adapter.weights[name].grad = gradient
        self._library.step()
        if self._by_weight:
            self._library.zero_grad(set_to_none=True)
        self.steps_done += 1

    def state_dict(self) -> dict[str, Any]:
        """Torch's own, with all state as tensors; no state before the first step."""
        return {**super().state_dict(), "state": self._saved() if self.steps_done else {}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        saved = {index: dict(entries) for index, entries in state_dict["state"].items()}
        super().load_state_dict({**state_dict, "state": {}})
        if not saved:
            return
        self.steps_done.copy_(saved[0].pop("steps_done"))
        for name, value in self._numbers().items():
            self._group[name] = type(value)(saved[0].pop(f"group.{name}").item())
        for index, weight in enumerate(self._group["params"]):
            self._library.state[weight] = {
                key: int(value) if key == _COUNT else value.to(weight.device, copy=True)
                for key, value in saved[index].items()
            }

    def state_shapes(self) -> dict[int, dict[str, torch.Size]]:
        """What the state of a training that has made a step consists of."""
        scalar = torch.Size()
        shapes = {
            index: {_COUNT: scalar, **_SHAPES[type(self._library).__name__](weight)}
            for index, weight in enumerate(self._group["params"])
        }
        shapes[0] |= {"steps_done": scalar} | {f"group.{name}": scalar for name in self._numbers()}
        return shapes

    def _saved(self) -> dict[int, dict[str, torch.Tensor]]:
        found = {
            index: {
                key: value.clone() if isinstance(value, torch.Tensor) else torch.tensor(value)
                for key, value in self._library.state[weight].items()
            }
            for index, weight in enumerate(self._group["params"])
        }
        found[0] |= {"steps_done": self.steps_done.clone()}
        found[0] |= {
            f"group.{name}": torch.tensor(value, dtype=torch.float64)
            for name, value in self._numbers().items()
        }
        return found

    def _numbers(self) -> dict[str, int | float]:
        """What the library keeps beside the tensors, such as Prodigy's estimate of the rate."""
        return {
            name: value
            for name, value in self._group.items()
            if type(value) in (int, float) and name != "lr"
        }


def prodigy(adapter: AdapterWeights, parameters: TrainingParameters) -> LibraryOptimizer:
    """Prodigy (arXiv:2306.06101), with what its authors advise for diffusion models.

    Its estimate of the rate is of all weights together, as the buffer has them. Reading it waits
    for the device at every step.
    """
    library = _package("prodigy")
    with contextlib.redirect_stdout(sys.stderr):  # it prints
        inner = library.Prodigy(
            [adapter.buffer],
            lr=parameters.learning_rate,
            betas=(parameters.adam_beta1, parameters.adam_beta2),
            eps=parameters.adam_epsilon,
            weight_decay=parameters.adam_weight_decay,
            use_bias_correction=True,
            safeguard_warmup=True,
        )
    [group] = inner.param_groups
    # There from the first step on; a state has the same parts before.
    group |= {"d_denom": 0.0, "d_hat": group["d0"]}
    return LibraryOptimizer(adapter, inner)


def adafactor(adapter: AdapterWeights, parameters: TrainingParameters) -> LibraryOptimizer:
    """Adafactor (arXiv:1804.04235) at the learning rate that the schedule gives.

    Not relative to the weights' size: second matrices begin at 0 and would hardly move.
    """
    inner = Adafactor(
        list(adapter.weights.values()),
        lr=parameters.learning_rate,
        weight_decay=parameters.adam_weight_decay,
        scale_parameter=False,
        relative_step=False,
        warmup_init=False,
    )
    return LibraryOptimizer(adapter, inner)


def adamw8bit(adapter: AdapterWeights, parameters: TrainingParameters) -> LibraryOptimizer:
    """AdamW with moments of 8 bits in blocks of 256 (arXiv:2110.02861)."""
    inner = _package("adamw8bit").optim.AdamW8bit(
        [adapter.buffer],
        lr=parameters.learning_rate,
        betas=(parameters.adam_beta1, parameters.adam_beta2),
        eps=parameters.adam_epsilon,
        weight_decay=parameters.adam_weight_decay,
    )
    return LibraryOptimizer(adapter, inner)


def _package(optimizer: str) -> Any:
    name = _PACKAGES[optimizer]
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        raise JobError(
            ErrorCode.INVALID_JOB,
            f"parameters.optimizer: {optimizer} needs the package {name}, which this worker does "
            "not have or cannot load; send another optimizer, or have the operator install this "
            "package's extra `optimizers`.",
        ) from error


def _prodigy_shapes(weight: torch.Tensor) -> dict[str, torch.Size]:
    return dict.fromkeys(("s", "p0", "exp_avg", "exp_avg_sq"), weight.shape)


def _adafactor_shapes(weight: torch.Tensor) -> dict[str, torch.Size]:
    shape = weight.shape
    if len(shape) < 2:  # no matrix
        return {"RMS": torch.Size(), "exp_avg_sq": shape}
    column = torch.Size((*shape[:-2], shape[-1]))
    return {"RMS": torch.Size(), "exp_avg_sq_row": shape[:-1], "exp_avg_sq_col": column}


def _adamw8bit_shapes(weight: torch.Tensor) -> dict[str, torch.Size]:
    shapes = dict.fromkeys(("state1", "state2"), weight.shape)
    if weight.numel() < _MIN_8BIT_SIZE:
        return shapes
    blocks = torch.Size((-(-weight.numel() // _8BIT_BLOCK),))
    codes = dict.fromkeys(("qmap1", "qmap2"), torch.Size((_8BIT_CODES,)))
    return shapes | codes | dict.fromkeys(("absmax1", "absmax2"), blocks)


#: What each library's optimizer keeps for a weight beside its count.
_SHAPES = {
    "Prodigy": _prodigy_shapes,
    "Adafactor": _adafactor_shapes,
    "AdamW8bit": _adamw8bit_shapes,
}
