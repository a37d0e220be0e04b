"""The loops that are compared within one process, each on a base model of its own."""

from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator

from benchmarks.workload import LEARNING_RATE, SEED, Workload
from tests.unit.training.builders import read_usable
from tests.unit.training.reference_loop import (
    reference_scheduler,
    reference_step,
    reference_text,
    reference_unet,
)
from worker.contract.pipe import StepLaunch
from worker.training.adapter import add_adapter, remove_adapter
from worker.training.base_model import (
    LoadedBaseModel,
    load_base_model,
    unet_of_same_weights,
)
from worker.training.cache import encode
from worker.training.device import arithmetic_for, free_memory_bytes, this_device
from worker.training.launch import prepare_launch
from worker.training.optimizer import new_accelerator, new_optimizer, new_schedule
from worker.training.plan import make_plan
from worker.training.sampler import Sample, draw
from worker.training.seat import Seat
from worker.training.step import Lesson, Trainee, optimizer_step

#: Steps that a loop may make; the learning rate is constant.
_MANY = 50_000


class PeerLoop:
    """diffusers' loop: every picture and caption encoded at every step, PEFT, AdamW.

    In half precision the base, VAE and text encoder included, is in it, and autocast is on, as the
    script has it. With `checkpointing` it is the loop of a naive worker, which recomputes
    activations as well.
    """

    def __init__(self, workload: Workload, *, checkpointing: bool = False) -> None:
        order = workload.command(workload.folder / "peer")
        location, device = order.base_model.location, this_device()
        arithmetic = arithmetic_for(order.parameters.mixed_precision, device)
        model = load_base_model(order.base_model, arithmetic, allow_hub=False)
        pictures = read_usable(order)
        self._pixels = [pixels[None].to(device, arithmetic.base_dtype) for _, pixels in pictures]
        self._captions = [picture.file.caption for picture, _ in pictures]
        start = add_adapter(model.unet, order.parameters, SEED).weights
        self.unet, weights = reference_unet(location, order.parameters, start)
        del model.unet
        self.unet.to(device)
        for name, weight in self.unet.named_parameters():
            if name not in weights:
                weight.data = weight.data.to(arithmetic.base_dtype)
        for part in (model.vae, *(text.model for text in model.text_encoders)):
            part.to(arithmetic.base_dtype)
        if checkpointing:
            self.unet.enable_gradient_checkpointing()
        self._model, self._accelerator = model, new_accelerator(arithmetic)
        self._optimizer = torch.optim.AdamW(list(weights.values()), lr=LEARNING_RATE)
        self._schedule = torch.optim.lr_scheduler.ConstantLR(self._optimizer, factor=1)
        self._optimizer = self._accelerator.prepare(self._optimizer)
        self._autocast_unet = _autocast(self._accelerator, self.unet)
        self._ddpm = reference_scheduler(location)
        self._step = 0

    def step(self) -> None:
        """One optimizer step; its loss is read, as the script does for its progress bar."""
        place = self._step % len(self._pixels)
        pixels = self._pixels[place]
        numbers = draw(
            Sample(self._step, 0, 0),
            seed=SEED,
            latent_shape=torch.Size((4, pixels.shape[-2] // 8, pixels.shape[-1] // 8)),
            timesteps=len(self._ddpm.alphas_cumprod),
            flip=False,
            caption_dropout_rate=0,
        )
        loss = reference_step(
            self._model,
            self._autocast_unet,
            pixels,
            reference_text(self._model, [self._captions[place]]),
            [numbers],
            self._optimizer,
            self._schedule,
            self._ddpm,
            self._accelerator.backward,
        )
        loss.item()
        self._step += 1


def _autocast(accelerator: Accelerator, unet: Any) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        with accelerator.autocast():
            return unet(*args, **kwargs)

    return forward


class OurLoop:
    """The trainer's own loop."""

    def __init__(
        self,
        workload: Workload,
        *,
        launch: StepLaunch = "auto",
        model: LoadedBaseModel | None = None,
        **rules: Any,
    ) -> None:
        """Prepare a job; on the base of `model`, under a UNet of its own, if that is given."""
        order = workload.command(workload.folder / "ours", **{"max_train_steps": _MANY, **rules})
        parameters, device = order.parameters, this_device()
        arithmetic = arithmetic_for(parameters.mixed_precision, device)
        if model is None:
            model = load_base_model(order.base_model, arithmetic, allow_hub=False)
        else:
            model = replace(model, unet=unet_of_same_weights(model.unet))
        pictures = read_usable(order)
        free = free_memory_bytes(device)
        plan = make_plan(
            parameters,
            len(pictures),
            memory=model.family.memory,
            free_bytes=free,
            launch=launch,
        )
        self._lesson = Lesson(
            dataset=encode(model, pictures, mirrored=False),
            schedule=model.schedule,
            prediction_type=model.prediction_type,
            parameters=parameters,
            plan=plan,
            seed=SEED,
        )
        accelerator = new_accelerator(arithmetic)
        adapter = add_adapter(model.unet, parameters, SEED)
        optimizer = new_optimizer(accelerator, adapter, parameters)
        self._trainee = Trainee(
            unet=model.unet.train(),
            adapter=adapter,
            accelerator=accelerator,
            optimizer=optimizer,
            schedule=new_schedule(optimizer, parameters, plan.total_steps),
            losses=torch.full((plan.total_steps,), torch.nan, device=device),
        )
        prepare_launch(self._trainee, self._lesson, print)

    def step(self) -> None:
        """One optimizer step; its loss stays where it is, as between two reports."""
        optimizer_step(self._trainee, self._lesson)
        self._trainee.step += 1

    def sit(self, seat: Seat | None) -> None:
        """Make steps among others, or by itself."""
        self._trainee.seat = seat

    def close(self) -> None:
        """Let go of the model and of what was recorded."""
        remove_adapter(self._trainee.unet)
        del self._trainee, self._lesson
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
