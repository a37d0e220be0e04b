"""Pictures and captions, encoded once, kept on the device, keyed by picture and never by step."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from worker.contract.errors import ErrorCode, JobError
from worker.training.base_model import LoadedBaseModel
from worker.training.conditioning import Captions, Conditions, encode_captions, time_ids
from worker.training.families.family import Shown
from worker.training.images import Picture

#: Dimensions of the pixels of a picture of which several parts are encoded.
_SEVERAL_PARTS = 4


@dataclass(frozen=True)
class Bucket:
    """The posteriors of the pictures of one size.

    Attributes:
        pictures: which they are, one a row.
        mean, std: the VAE's posterior, unscaled, `[N, V, 4, H/8, W/8]`. V is the number of parts of
            a picture, twice that with mirrored pictures: each part is followed by its mirror image.
        time_ids: what the UNet is told of sizes, `[N, V, 6]`, where the family has that.
    """

    pictures: tuple[int, ...]
    mean: torch.Tensor
    std: torch.Tensor
    time_ids: torch.Tensor | None = None

    @property
    def latent_shape(self) -> torch.Size:
        """`[4, H/8, W/8]`."""
        return self.mean.shape[2:]


@dataclass(frozen=True)
class Dataset:
    """What the loop trains on.

    Attributes:
        buckets: the latents, by size; one bucket unless pictures keep their aspect ratios.
        scaling_factor, shift: of the VAE; applied once, where a latent is taken.
        embeddings: of the captions; the last one is the empty prompt's.
        orders: for each picture the indices of the embeddings of its caption: as it is, and where
            captions are shuffled with its tags in other orders.
        sha256: of each picture's file.
        crops: parts of a picture that are cached.
    """

    buckets: tuple[Bucket, ...]
    scaling_factor: float
    embeddings: Captions
    orders: tuple[tuple[int, ...], ...]
    sha256: tuple[str, ...]
    crops: int = 1
    shift: float = 0.0

    @cached_property
    def _places(self) -> dict[int, tuple[int, int]]:
        return {
            picture: (number, row)
            for number, bucket in enumerate(self.buckets)
            for row, picture in enumerate(bucket.pictures)
        }

    @property
    def device(self) -> torch.device:
        """Where the latents lie."""
        return self.buckets[0].mean.device

    @property
    def captions(self) -> tuple[int, ...]:
        """Index of the embedding of each picture's caption as it is."""
        return tuple(orders[0] for orders in self.orders)

    def place_of(self, picture: int) -> tuple[int, int]:
        """Bucket and row of a picture."""
        return self._places[picture]

    def bucket_of(self, picture: int) -> Bucket:
        """The bucket that a picture lies in."""
        return self.buckets[self.place_of(picture)[0]]

    def by_bucket(self, without: Collection[int] = ()) -> tuple[tuple[int, ...], ...]:
        """The pictures of each bucket, leaving out some, and then empty buckets."""
        kept = [[p for p in bucket.pictures if p not in without] for bucket in self.buckets]
        return tuple(tuple(pictures) for pictures in kept if pictures)

    def latents(
        self, bucket: int, rows: torch.Tensor, variants: torch.Tensor, epsilon: torch.Tensor
    ) -> torch.Tensor:
        """Latents `[B, 4, H/8, W/8]` from the cached posteriors and standard normal numbers."""
        cached = self.buckets[bucket]
        mean, std = cached.mean[rows, variants], cached.std[rows, variants]
        return self._scaled(mean + std * epsilon)

    def mean_latent(self, picture: int) -> torch.Tensor:
        """The posterior's mean of one picture's first part as it is, `[4, H/8, W/8]`."""
        bucket, row = self.place_of(picture)
        return self._scaled(self.buckets[bucket].mean[row, 0])

    def _scaled(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents - self.shift if self.shift else latents) * self.scaling_factor

    def told(
        self,
        bucket: int,
        rows: torch.Tensor,
        variants: torch.Tensor,
        captions: torch.Tensor,
        text_encoder: Any = None,
    ) -> Conditions:
        """What the UNet is told with the latents of B samples, beside the timestep.

        Captions are as they were encoded once; by `text_encoder`, if there is one, as it does now.
        """
        ids = self.buckets[bucket].time_ids
        shown = None if ids is None else ids[rows, variants]
        return self.embeddings.told(captions, shown, text_encoder)

    def variant(self, crop: int, *, flipped: bool) -> int:
        """Index of one part of a picture, or of its mirror image."""
        return crop * (self.buckets[0].mean.shape[1] // self.crops) + flipped

    def embedding_of(self, picture: int, *, order: int = 0, dropped: bool = False) -> int:
        """Index of the embedding of a picture's caption, or of the empty prompt's."""
        return len(self.embeddings) - 1 if dropped else self.orders[picture][order]


def as_it_is(caption: str) -> tuple[str, ...]:
    """The one order of a caption whose tags stay in place."""
    return (caption,)


@torch.no_grad()
def encode(
    model: LoadedBaseModel,
    pictures: Iterable[tuple[Picture, torch.Tensor]],
    *,
    mirrored: bool,
    crops: int = 1,
    caption_orders: Callable[[str], Sequence[str]] = as_it_is,
) -> Dataset:
    """Encode every picture and every distinct caption once.

    Args:
        model: the base model.
        pictures: each with its pixels, `[3, H, W]` or its parts, `[K, 3, H, W]`; taken one at a
            time and not kept.
        mirrored: also encode the mirror image of each part.
        crops: parts that each picture counts as; one that has a single part repeats it.
        caption_orders: the caption itself, and the other orders of its tags that are trained with.

    Raises:
        JobError: `INVALID_IMAGE`, the encoder gave no finite numbers for a picture.
    """
    encoded: list[Picture] = []
    rows: dict[tuple[int, ...], list[_Row]] = {}
    for picture, pixels in pictures:
        size = tuple(pixels.shape[-2:])
        mean, std = _posterior(model, picture, pixels, mirrored=mirrored)
        times = crops * (1 + mirrored) // len(mean)
        row = _Row(
            picture=len(encoded),
            mean=mean.repeat(times, 1, 1, 1),
            std=std.repeat(times, 1, 1, 1),
            shown=_shown(picture, mirrored=mirrored) * times,
        )
        rows.setdefault(size, []).append(row)
        encoded.append(picture)
    wordings = [tuple(caption_orders(picture.file.caption)) for picture in encoded]
    texts = list(dict.fromkeys(text for orders in wordings for text in orders))
    index = {text: number for number, text in enumerate(texts)}
    return Dataset(
        buckets=tuple(_bucket(model, same) for same in rows.values()),
        scaling_factor=float(model.vae.config.scaling_factor),
        embeddings=encode_captions(model.family, model.text_encoders, texts),
        orders=tuple(tuple(index[text] for text in orders) for orders in wordings),
        sha256=tuple(picture.sha256 for picture in encoded),
        crops=crops,
        shift=float(getattr(model.vae.config, "shift_factor", None) or 0),
    )


@dataclass(frozen=True)
class _Row:
    """One picture's variants: posteriors `[V, 4, H/8, W/8]`, and what is shown by each."""

    picture: int
    mean: torch.Tensor
    std: torch.Tensor
    shown: list[Shown]


def _bucket(model: LoadedBaseModel, rows: Sequence[_Row]) -> Bucket:
    return Bucket(
        pictures=tuple(row.picture for row in rows),
        mean=torch.stack([row.mean for row in rows]),
        std=torch.stack([row.std for row in rows]),
        time_ids=time_ids(model.family, [row.shown for row in rows], model.arithmetic.device),
    )


def _posterior(
    model: LoadedBaseModel, picture: Picture, pixels: torch.Tensor, *, mirrored: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = pixels.to(model.arithmetic.device)
    parts = pixels if pixels.dim() == _SEVERAL_PARTS else pixels[None]
    variants = [v for part in parts for v in ((part, part.flip(-1)) if mirrored else (part,))]
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


def _shown(picture: Picture, *, mirrored: bool) -> list[Shown]:
    """What the parts of a picture show of it, each followed by its mirror image if there is one."""
    return [
        Shown((picture.height, picture.width), (cut.top, left), (cut.size[1], cut.size[0]))
        for cut in picture.cuts
        for left in ((cut.left, cut.right) if mirrored else (cut.left,))
    ]


def count_tokens(model: LoadedBaseModel, caption: str) -> int:
    """Tokens of a caption, with start and end, however many the text encoder takes."""
    return len(model.text_encoders[0].tokenizer(caption, verbose=False).input_ids)
