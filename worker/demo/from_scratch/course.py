"""A long training that can be stopped and go on: schedule, average of weights, checkpoint."""

import copy
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

#: Optimizer steps between two lines of the log, and between two checkpoints.
LOG_EVERY, CHECKPOINT_EVERY = 50, 250

Say = Callable[[str], None]


@dataclass(frozen=True)
class Schedule:
    """The learning rate of each step: a warm-up, then half a cosine to nearly nothing."""

    peak: float
    steps: int
    warmup: int = 200
    floor: float = 0.01

    def rate(self, step: int) -> float:
        """The rate of step `step`, which counts from 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done)))


class Course:
    """Modules in training, their optimizer, the moving average of their weights.

    Args:
        modules: by name; trained in place.
        schedule: of the learning rate.
        checkpoint: file that the state is kept in; read where it exists.
        decay: of the moving average, which is what is shipped.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        schedule: Schedule,
        checkpoint: Path,
        *,
        decay: float = 0.999,
        weight_decay: float = 0.01,
    ) -> None:
        self.modules, self.schedule, self.decay = modules, schedule, decay
        self.checkpoint = checkpoint
        self.averages = {name: copy.deepcopy(module).eval() for name, module in modules.items()}
        for average in self.averages.values():
            average.requires_grad_(requires_grad=False)
        self._weights = [
            weight for module in modules.values() for weight in module.parameters()
            if weight.requires_grad
        ]  # fmt: skip
        self._optimizer = torch.optim.AdamW(
            self._weights, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
        )
        self.step = 0
        if checkpoint.exists():
            self._load(load_file(checkpoint))

    def run(
        self, loss_of: Callable[[int], torch.Tensor], say: Say, show: Callable[[], None]
    ) -> None:
        """Train to the end of the schedule.

        Args:
            loss_of: the loss of a step; draws from the step's number alone.
            say: a line for the log.
            show: called at each checkpoint, for samples to look at.
        """
        losses: list[float] = []
        since = time.monotonic()
        while self.step < self.schedule.steps:
            for group in self._optimizer.param_groups:
                group["lr"] = self.schedule.rate(self.step)
            loss = loss_of(self.step)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(self._weights, 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad()
            self.step += 1
            self._follow()
            losses.append(loss.item())
            if self.step % LOG_EVERY == 0:
                seconds = (time.monotonic() - since) / LOG_EVERY
                mean = sum(losses) / len(losses)
                say(
                    f"step {self.step}/{self.schedule.steps} loss {mean:.5f} {seconds:.3f} s a step"
                )
                losses, since = [], time.monotonic()
            if self.step % CHECKPOINT_EVERY == 0 or self.step == self.schedule.steps:
                self._save()
                show()
                since = time.monotonic()

    @torch.no_grad()
    def _follow(self) -> None:
        """Early averages forget sooner, so that the random start has no part in them."""
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        for name, module in self.modules.items():
            average = _data(self.averages[name].parameters())
            torch._foreach_lerp_(average, _data(module.parameters()), 1 - decay)

    def _save(self) -> None:
        state = {"step": torch.tensor(self.step)}
        for kind, modules in (("module", self.modules), ("average", self.averages)):
            for name, module in modules.items():
                for key, values in module.state_dict().items():
                    state[f"{kind}.{name}.{key}"] = values.contiguous()
        for number, weight in enumerate(self._weights):
            for key, values in self._optimizer.state[weight].items():
                state[f"optimizer.{number}.{key}"] = values.contiguous()
        aside = self.checkpoint.with_suffix(".tmp")
        save_file(state, aside)
        aside.replace(self.checkpoint)

    def _load(self, state: dict[str, torch.Tensor]) -> None:
        self.step = int(state["step"])
        for kind, modules in (("module", self.modules), ("average", self.averages)):
            for name, module in modules.items():
                module.load_state_dict(_within(state, f"{kind}.{name}."))
        for number, weight in enumerate(self._weights):
            kept = self._optimizer.state[weight]
            for key, values in _within(state, f"optimizer.{number}.").items():
                # The moments lie in memory as their weight does, or the fused step mixes them up.
                alike = (
                    torch.empty_like(weight, requires_grad=False)
                    if values.shape == weight.shape
                    else values
                )
                kept[key] = alike.copy_(values)


def _within(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key[len(prefix) :]: values for key, values in state.items() if key.startswith(prefix)}


def _data(weights: Iterable[nn.Parameter]) -> list[torch.Tensor]:
    return [weight.data for weight in weights]
