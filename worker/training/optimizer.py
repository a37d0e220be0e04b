"""Accelerate, the optimizer and the learning-rate schedule of one job."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from diffusers.optimization import get_scheduler

from worker.contract.parameters import TrainingParameters
from worker.training.adapter import TEXT_ENCODER
from worker.training.adapter_weights import AdapterWeights, JoinedWeights
from worker.training.device import Arithmetic
from worker.training.library_optimizer import LibraryOptimizer, adafactor, adamw8bit, prodigy

#: AdamW's state of one element of a weight; the number of steps is the same for all.
_MOMENTS = ("exp_avg", "exp_avg_sq")

#: The rate that diffusers' polynomial schedule falls to. It fails where there is nothing to fall
#: from, and where there is no step to fall in.
_POLYNOMIAL_END = 1e-7


def new_accelerator(arithmetic: Arithmetic) -> Accelerator:
    """An accelerator for one job.

    Accelerate keeps its state for the whole process; it is reset, so that a job may have another
    precision than the one before. Accumulation is the loop's own: Accelerate would divide by the
    full number even in a shorter last group.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(
        mixed_precision=arithmetic.precision, cpu=arithmetic.device.type == "cpu"
    )
    if accelerator.scaler is not None:
        # It begins with the first loss, and a process may have no micro-batch in a step.
        accelerator.scaler.scale(torch.zeros((), device=arithmetic.device))
    return accelerator


class FlatAdamW(torch.optim.AdamW):
    """Fused AdamW on the adapter's one buffer, whose saved state is by weight all the same.

    A checkpoint thus holds for each weight what AdamW on 256 tensors would hold, and does not
    depend on how the buffer is laid out.
    """

    def __init__(self, adapter: AdapterWeights, parameters: TrainingParameters) -> None:
        buffer = adapter.buffer
        super().__init__(
            [buffer],
            lr=torch.tensor(parameters.learning_rate, device=buffer.device),
            betas=(parameters.adam_beta1, parameters.adam_beta2),
            weight_decay=parameters.adam_weight_decay,
            eps=parameters.adam_epsilon,
            fused=True,
        )
        self._adapter = adapter
        self.state[buffer] = self._fresh_state()

    @property
    def steps_done(self) -> torch.Tensor:
        """Steps that were not skipped, a scalar on the device.

        With fp16 the scaler lets the fused kernel decide, on the device, whether a step is skipped;
        no Python code on the way hears of it, but AdamW's own count does not grow.
        """
        steps: torch.Tensor = self.state[self._adapter.buffer]["step"]
        return steps

    def state_dict(self) -> dict[str, Any]:
        """Torch's own, with the state of each weight in `weights`' order."""
        state = self.state[self._adapter.buffer]
        moments = {name: self._adapter.views(state[name]) for name in _MOMENTS}
        by_weight = {
            index: {"step": state["step"].clone(), **{name: moments[name][key] for name in moments}}
            for index, key in enumerate(self._adapter.weights)
        }
        return {**super().state_dict(), "state": by_weight}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave, or a state without moments: that of no step at all."""
        saved = state_dict["state"]
        super().load_state_dict({**state_dict, "state": {}})
        self.state[self._adapter.buffer] = state = self._fresh_state()
        if not saved:
            return
        for name in _MOMENTS:
            for index, view in enumerate(self._adapter.views(state[name]).values()):
                view.copy_(saved[index][name])
        state["step"].copy_(saved[0]["step"])

    def state_shapes(self) -> dict[int, dict[str, torch.Size]]:
        """What `state_dict` gives: for each weight, moments of its shape and the steps done."""
        return {
            index: {"step": torch.Size(), **dict.fromkeys(_MOMENTS, weight.shape)}
            for index, weight in enumerate(self._adapter.weights.values())
        }

    def _fresh_state(self) -> dict[str, torch.Tensor]:
        buffer = self._adapter.buffer
        moments = {name: torch.zeros_like(buffer) for name in _MOMENTS}
        return {"step": torch.zeros((), device=buffer.device), **moments}


#: What makes each optimizer of the contract.
_OPTIMIZERS: dict[
    str, Callable[[AdapterWeights, TrainingParameters], FlatAdamW | LibraryOptimizer]
] = {"adamw": FlatAdamW, "adamw8bit": adamw8bit, "prodigy": prodigy, "adafactor": adafactor}


def new_optimizer(
    accelerator: Accelerator, adapter: AdapterWeights, parameters: TrainingParameters
) -> Any:
    """The job's optimizer on the adapter, wrapped by Accelerate."""
    optimizer = _OPTIMIZERS[parameters.optimizer](adapter, parameters)
    rate = parameters.text_encoder_learning_rate
    if isinstance(adapter, JoinedWeights) and rate is not None:
        piece = adapter.buffer.detach()[adapter.places[TEXT_ENCODER]]
        _move_at_another_rate(optimizer, piece, rate / parameters.learning_rate)
    return accelerator.prepare(optimizer)


def _move_at_another_rate(
    optimizer: torch.optim.Optimizer, piece: torch.Tensor, factor: float
) -> None:
    """Have each step move `piece` of the buffer by `factor` times what the learning rate says.

    What an optimizer adds to a weight is its learning rate times something, decay included; so this
    is what another learning rate would do, with one set of kernels for all weights.
    """
    before: list[torch.Tensor] = []

    def remember(*_: Any) -> None:
        before[:] = [piece.clone()]

    def move(*_: Any) -> None:
        piece.copy_(torch.lerp(before.pop(), piece, factor))

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(move)


class Schedule:
    """The learning rate after so many steps, kept on the device, so that nobody waits for it.

    diffusers' schedules are functions of the number of steps; they are tabulated once. The number
    is the optimizer's, which a skipped step does not raise.
    """

    def __init__(
        self,
        optimizer: FlatAdamW | LibraryOptimizer,
        parameters: TrainingParameters,
        total_steps: int,
    ) -> None:
        throw_away = torch.optim.SGD([torch.zeros(1)], lr=parameters.learning_rate)
        name, warmup = parameters.lr_scheduler, parameters.lr_warmup_steps
        falls = parameters.learning_rate > _POLYNOMIAL_END and warmup < total_steps
        if name == "polynomial" and not falls:
            name = "constant_with_warmup"
        factor = get_scheduler(
            name,
            optimizer=throw_away,
            num_warmup_steps=warmup,
            num_training_steps=total_steps,
        ).lr_lambdas[0]
        device = optimizer.steps_done.device
        self._rates = torch.tensor(
            [parameters.learning_rate * factor(step) for step in range(total_steps + 1)],
            device=device,
            # The fused kernel of a GPU reads the rate as fp32, that of a CPU as double.
            dtype=torch.float64 if device.type == "cpu" else torch.float32,
        )
        self._optimizer = optimizer

    def apply(self) -> torch.Tensor:
        """Give the optimizer the rate of its next step; returns it, a scalar on the device."""
        # By `take`: an index in brackets would be read, and reading it waits for the device.
        rate = torch.take(self._rates, self._optimizer.steps_done.long())
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        return rate


def new_schedule(optimizer: Any, parameters: TrainingParameters, total_steps: int) -> Schedule:
    """The schedule of an optimizer that Accelerate has wrapped."""
    return Schedule(optimizer.optimizer, parameters, total_steps)
