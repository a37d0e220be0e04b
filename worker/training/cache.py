"""Pictures and captions, encoded once, kept on the device, keyed by picture and never by step."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from worker.contract.errors import ErrorCode, JobError
from worker.training.base_model import LoadedBaseModel
from worker.training.conditioning import Captions, Conditions, encode_captions, time_ids
from worker.training.families.family import Shown
from worker.training.images import Picture


@dataclass(frozen=True)
class Dataset:
    """What the loop trains on.

    Attributes:
        mean, std: the VAE's posterior, unscaled, `[N, V, 4, R/8, R/8]`; V is 2 with mirrored
            pictures, else 1.
        scaling_factor: applied once, where a latent is taken.
        embeddings: of the captions; the last one is the empty prompt's.
        captions: index of each picture's caption in `embeddings`.
        sha256: of each picture's file.
        time_ids: what the UNet is told of sizes, `[N, V, 6]`, where the family has that.
    """

    mean: torch.Tensor
    std: torch.Tensor
    scaling_factor: float
    embeddings: Captions
    captions: tuple[int, ...]
    sha256: tuple[str, ...]
    time_ids: torch.Tensor | None = None

    @property
    def latent_shape(self) -> torch.Size:
        """`[4, R/8, R/8]`."""
        return self.mean.shape[2:]

    def latents(
        self, pictures: torch.Tensor, variants: torch.Tensor, epsilon: torch.Tensor
    ) -> torch.Tensor:
        """Latents `[B, 4, R/8, R/8]` from the cached posteriors and standard normal numbers."""
        mean, std = self.mean[pictures, variants], self.std[pictures, variants]
        return (mean + std * epsilon) * self.scaling_factor

    def mean_latent(self, picture: int) -> torch.Tensor:
        """The posterior's mean of one picture as it is, `[4, R/8, R/8]`."""
        return self.mean[picture, 0] * self.scaling_factor

    def told(
        self, pictures: torch.Tensor, variants: torch.Tensor, captions: torch.Tensor
    ) -> Conditions:
        """What the UNet is told with the latents of B samples, beside the timestep."""
        ids = None if self.time_ids is None else self.time_ids[pictures, variants]
        return self.embeddings.told(captions, ids)

    def embedding_of(self, picture: int, *, dropped: bool) -> int:
        """Index of the embedding of a picture's caption, or of the empty prompt's."""
        return len(self.embeddings) - 1 if dropped else self.captions[picture]


@torch.no_grad()
def encode(
    model: LoadedBaseModel, pictures: Iterable[tuple[Picture, torch.Tensor]], *, mirrored: bool
) -> Dataset:
    """Encode every picture and every distinct caption once.

    Args:
        model: the base model.
        pictures: each with its pixels, `[3, R, R]`; taken one at a time and not kept.
        mirrored: also encode each picture's mirror image.

    Raises:
        JobError: `INVALID_IMAGE`, the encoder gave no finite numbers for a picture.
    """
    encoded, posteriors, side = [], [], 0
    for picture, pixels in pictures:
        encoded.append(picture)
        side = pixels.shape[-1]
        posteriors.append(_posterior(model, picture, pixels, mirrored=mirrored))
    captions = list(dict.fromkeys(picture.file.caption for picture in encoded))
    return Dataset(
        mean=torch.stack([mean for mean, _ in posteriors]),
        std=torch.stack([std for _, std in posteriors]),
        scaling_factor=float(model.vae.config.scaling_factor),
        embeddings=encode_captions(model.family, model.text_encoders, captions),
        captions=tuple(captions.index(picture.file.caption) for picture in encoded),
        sha256=tuple(picture.sha256 for picture in encoded),
        time_ids=time_ids(
            model.family,
            [[_shown(picture, side)] * (2 if mirrored else 1) for picture in encoded],
            model.arithmetic.device,
        ),
    )


def _posterior(
    model: LoadedBaseModel, picture: Picture, pixels: torch.Tensor, *, mirrored: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = pixels.to(model.arithmetic.device)
    variants = [pixels, pixels.flip(-1)] if mirrored else [pixels]
    means, stds = [], []
    for variant in variants:
        posterior = model.vae.encode(variant[None]).latent_dist
        if not (posterior.mean.isfinite().all() and posterior.std.isfinite().all()):
            raise JobError(
                ErrorCode.INVALID_IMAGE,
                f"The picture {picture.file.source} could not be encoded to finite numbers; "
                "leave it out.",
            )
        means.append(posterior.mean[0])
        stds.append(posterior.std[0])
    return torch.stack(means), torch.stack(stds)


def _shown(picture: Picture, side: int) -> Shown:
    """The middle square of a picture, after its smaller side was made `side` pixels long.

    Rounded as torchvision and diffusers' training script for Stable Diffusion XL do. The mirror
    image has the same: its middle is the same distance away.
    """
    shorter = min(picture.width, picture.height)
    top, left = (
        round((int(side * length / shorter) - side) / 2)
        for length in (picture.height, picture.width)
    )
    return Shown((picture.height, picture.width), (top, left), (side, side))
