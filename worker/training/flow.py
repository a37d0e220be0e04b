"""What is learned with flow matching? Straight paths from pictures to noise, as pure functions."""

import torch


class FlowSchedule:
    """Rectified flow as in Stable Diffusion 3 (arXiv:2403.03206), its tables on the device.

    What a picture is on its way to noise, and how fast it goes there: `x_σ = (1 - σ) x_0 + σ ε` and
    `dx/dσ = ε - x_0`. Timesteps are places in the tables, from pure noise down.
    """

    def __init__(self, sigmas: torch.Tensor, timesteps: torch.Tensor, device: torch.device) -> None:
        """Take the scheduler's tables `[T]`: σ, and what the model is told in its place."""
        self.sigma = sigmas.to(device=device, dtype=torch.float32)
        self.said = timesteps.to(device=device, dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.sigma)

    def choose(self, source: torch.Generator) -> int:
        """A timestep whose place is logit-normal (§3.1, mean 0, deviation 1), near the middle."""
        place = torch.sigmoid(torch.randn(1, generator=source, dtype=torch.float64))
        return min(int(place * len(self)), len(self) - 1)

    def told(self, timesteps: torch.Tensor) -> torch.Tensor:
        """What the model is told of timesteps `[B]`."""
        return self.said[timesteps]

    def add_noise(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """`(1 - σ) x_0 + σ ε` for `[B, C, h, w]` and timesteps `[B]`."""
        sigma = self.sigma[timesteps][:, None, None, None]
        return (1 - sigma) * latents + sigma * noise

    def target(
        self,
        prediction_type: str,
        latents: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
    ) -> torch.Tensor:
        """`ε - x_0`, whatever σ is."""
        return noise - latents

    def weights(
        self, prediction_type: str, timesteps: torch.Tensor, snr_gamma: float | None
    ) -> torch.Tensor | None:
        """None: which σ counts how much, the choice of timesteps has said already."""
        return None
