"""Has it learned? The loss at fixed timesteps with fixed noise, which repeats bit for bit.

The training loss cannot say it: its noise exceeds its fall.
"""

import torch

from worker.training.objective import sample_losses
from worker.training.step import Lesson, Trainee, predict, prompts_of

#: Timesteps that each picture is looked at with, spread evenly over the schedule.
TIMESTEPS = 4

#: Pictures that are looked at, the first ones. Before and after, all of it takes about as long as
#: 14 steps of training.
MAX_PICTURES = 4


def fixed_losses(trainee: Trainee, lesson: Lesson) -> tuple[float, float]:
    """`fixed_loss` without the adapter, which is where it began, and with it.

    Both are looked at after the training, so that nothing stands before its first step.
    """
    with trainee.adapter.silent():
        before = fixed_loss(trainee, lesson)
    return before, fixed_loss(trainee, lesson)


@torch.no_grad()
def fixed_loss(trainee: Trainee, lesson: Lesson) -> float:
    """Mean loss over stratified timesteps, noise seeded by picture, dropout off."""
    training = trainee.unet.training
    trainee.unet.eval()
    try:
        losses = [
            _picture_loss(trainee, lesson, picture)
            for picture in range(min(MAX_PICTURES, len(lesson.dataset.sha256)))
        ]
    finally:
        trainee.unet.train(training)
    return float(torch.stack(losses).mean())


def _picture_loss(trainee: Trainee, lesson: Lesson, picture: int) -> torch.Tensor:
    data, schedule = lesson.dataset, lesson.schedule
    device = data.mean.device
    seed = int(data.sha256[picture][:15], 16)
    source = torch.Generator().manual_seed(seed)
    noise = torch.randn((TIMESTEPS, *data.latent_shape), generator=source).to(device)
    width = len(schedule) / TIMESTEPS
    timesteps = torch.tensor([int((i + 0.5) * width) for i in range(TIMESTEPS)], device=device)
    latents = data.mean_latent(picture).expand(TIMESTEPS, *data.latent_shape)
    noisy = schedule.add_noise(latents, noise, timesteps)
    captions = torch.full((TIMESTEPS,), data.captions[picture], device=device)
    prompts = prompts_of(trainee, data, captions)
    prediction = predict(trainee, noisy, timesteps, prompts)
    target = schedule.target(lesson.prediction_type, latents, noise, timesteps)
    return sample_losses(prediction, target, None).mean()
