"""Pictures and captions, encoded once, kept on the device, keyed by picture and never by step."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from worker.contract.errors import ErrorCode, JobError
from worker.training.base_model import LoadedBaseModel
from worker.training.images import Picture


@dataclass(frozen=True)
class Dataset:
    """What the loop trains on.

    Attributes:
        mean, std: the VAE's posterior, unscaled, `[N, V, 4, R/8, R/8]`; V is 2 with mirrored
            pictures, else 1.
        scaling_factor: applied once, where a latent is taken.
        embeddings: `[C + 1, 77, D]`; the last one is the empty prompt's.
        tokens: what they were made from, `[C + 1, 77]`, for a text encoder that is trained.
        captions: index of each picture's embedding.
        sha256: of each picture's file.
    """

    mean: torch.Tensor
    std: torch.Tensor
    scaling_factor: float
    embeddings: torch.Tensor
    tokens: torch.Tensor
    captions: tuple[int, ...]
    sha256: tuple[str, ...]

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
    encoded, posteriors = [], []
    for picture, pixels in pictures:
        encoded.append(picture)
        posteriors.append(_posterior(model, picture, pixels, mirrored=mirrored))
    captions = list(dict.fromkeys(picture.file.caption for picture in encoded))
    tokens = torch.cat([_tokens(model, caption) for caption in [*captions, ""]])
    return Dataset(
        mean=torch.stack([mean for mean, _ in posteriors]),
        std=torch.stack([std for _, std in posteriors]),
        scaling_factor=float(model.vae.config.scaling_factor),
        embeddings=torch.cat([model.text_encoder(row[None])[0] for row in tokens]),
        tokens=tokens,
        captions=tuple(captions.index(picture.file.caption) for picture in encoded),
        sha256=tuple(picture.sha256 for picture in encoded),
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


def _tokens(model: LoadedBaseModel, caption: str) -> torch.Tensor:
    tokens = model.tokenizer(
        caption,
        # The text encoder's own limit: a tokenizer whose files do not say it has none.
        max_length=model.text_encoder.config.max_position_embeddings,
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    )
    ids: torch.Tensor = tokens.input_ids.to(model.arithmetic.device)
    return ids
