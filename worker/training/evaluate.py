"""Has it learned? The loss at fixed timesteps with fixed noise, which repeats bit for bit.

The training loss cannot say it: its noise exceeds its fall.
"""

import itertools
from collections.abc import Iterator

import torch

from worker.training.objective import sample_losses
from worker.training.step import Lesson, Trainee, predict

#: Forward passes of one look: as many timesteps, the middles of the eighths of the schedule. They
#: are dealt out to the pictures, so that a look costs the same however many there are.
PASSES = 8

#: Pictures that are looked at where none is held out.
_TRAINED_ON = 2

#: Passes that go through the UNet at once; without a backward pass four of them take less memory
#: than one sample of training.
_AT_ONCE = 4


def looked_at(lesson: Lesson) -> tuple[int, ...]:
    """The pictures whose loss is looked at: held-out ones, else the first that are trained on."""
    if lesson.held_out:
        return lesson.held_out[:PASSES]
    return tuple(range(len(lesson.dataset.sha256)))[:_TRAINED_ON]


@torch.no_grad()
def fixed_loss(trainee: Trainee, lesson: Lesson) -> float:
    """Mean loss over stratified timesteps: noise from the picture's hash, the posteriors' means.

    Dropout is off. No state of the training is touched, its random state included.
    """
    training = trainee.unet.training
    trainee.unet.eval()
    try:
        losses = torch.cat([_losses(trainee, lesson, some) for some in _batches(lesson)])
    finally:
        trainee.unet.train(training)
    return float(losses.mean())


def base_loss(trainee: Trainee, lesson: Lesson) -> float:
    """`fixed_loss` without the adapter, which is where it began.

    It can be looked at after the training, so that nothing stands before its first step.
    """
    with trainee.adapter.silent():
        return fixed_loss(trainee, lesson)


def _batches(lesson: Lesson) -> Iterator[list[tuple[int, int]]]:
    """Pictures and eighths of the schedule, few at once, of one bucket each."""
    pictures = looked_at(lesson)
    dealt = [(pictures[eighth % len(pictures)], eighth) for eighth in range(PASSES)]
    dealt.sort(key=lambda look: lesson.dataset.place_of(look[0]))
    for _, same in itertools.groupby(dealt, key=lambda look: lesson.dataset.place_of(look[0])[0]):
        while some := list(itertools.islice(same, _AT_ONCE)):
            yield some


def _losses(trainee: Trainee, lesson: Lesson, looks: list[tuple[int, int]]) -> torch.Tensor:
    data, schedule = lesson.dataset, lesson.schedule
    width = len(schedule) / PASSES
    middles = [int((eighth + 0.5) * width) for _, eighth in looks]
    timesteps = torch.tensor(middles, device=data.device)
    noise = torch.stack([_noise(lesson, *look) for look in looks]).to(data.device)
    latents = torch.stack([data.mean_latent(picture) for picture, _ in looks])
    noisy = schedule.add_noise(latents, noise, timesteps)
    bucket, _ = data.place_of(looks[0][0])
    places = [
        [data.place_of(picture)[1] for picture, _ in looks],
        [0] * len(looks),
        [data.embedding_of(picture) for picture, _ in looks],
    ]
    rows, variants, captions = torch.tensor(places, device=data.device)
    told = data.told(bucket, rows, variants, captions, trainee.text_encoder)
    prediction = predict(trainee, noisy, schedule.told(timesteps), told)
    target = schedule.target(lesson.prediction_type, latents, noise, timesteps)
    return sample_losses(prediction, target, None)


def _noise(lesson: Lesson, picture: int, eighth: int) -> torch.Tensor:
    """Standard normal, from the picture's hash: the same in every job that has the picture."""
    data = lesson.dataset
    source = torch.Generator().manual_seed(int(data.sha256[picture][:15], 16))
    shape = data.bucket_of(picture).latent_shape
    return torch.randn((PASSES, *shape), generator=source)[eighth]
