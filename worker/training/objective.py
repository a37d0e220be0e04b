"""What is learned? Noise schedule, target and loss as pure functions with their sources."""

import torch
from torch.nn import functional


class NoiseSchedule:
    """The forward process of DDPM (arXiv:2006.11239, eq. 4), with its tables on the device.

    diffusers' scheduler keeps `alphas_cumprod` on the CPU and moves it at every call; here it is
    moved once.
    """

    def __init__(self, alphas_cumprod: torch.Tensor, device: torch.device) -> None:
        """Take `alphas_cumprod` `[T]`."""
        table = alphas_cumprod.to(device=device, dtype=torch.float32)
        self.signal = table.sqrt()
        self.sigma = (1 - table).sqrt()
        self.snr = table / (1 - table)

    def __len__(self) -> int:
        return len(self.signal)

    def choose(self, source: torch.Generator) -> int:
        """A timestep, each as likely as the others."""
        return int(torch.randint(len(self), (1,), generator=source))

    def told(self, timesteps: torch.Tensor) -> torch.Tensor:
        """The UNet is told the timesteps `[B]` themselves."""
        return timesteps

    def add_noise(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """`x_t = sqrt(ā_t) x_0 + sqrt(1 - ā_t) ε` for `[B, 4, h, w]` and timesteps `[B]`."""
        signal, sigma = self._at(timesteps)
        return signal * latents + sigma * noise

    def target(
        self,
        prediction_type: str,
        latents: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
    ) -> torch.Tensor:
        """What the UNet shall say: ε, or `v = sqrt(ā) ε - sqrt(1 - ā) x_0` (arXiv:2202.00512)."""
        if prediction_type == "epsilon":
            return noise
        signal, sigma = self._at(timesteps)
        return signal * noise - sigma * latents

    def weights(
        self, prediction_type: str, timesteps: torch.Tensor, snr_gamma: float | None
    ) -> torch.Tensor | None:
        """Min-SNR weights `[B]` (arXiv:2303.09556, §3.4); None for the plain loss.

        `min(SNR, γ) / SNR` for ε, which goes to 1 where a schedule ends in pure noise, and
        `min(SNR, γ) / (SNR + 1)` for v.
        """
        if snr_gamma is None:
            return None
        snr = self.snr[timesteps]
        if prediction_type == "epsilon":
            return (snr_gamma / snr).clamp(max=1)
        return snr.clamp(max=snr_gamma) / (snr + 1)

    def _at(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.signal[timesteps][:, None, None, None], self.sigma[timesteps][
            :, None, None, None
        ]


def sample_losses(
    prediction: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None
) -> torch.Tensor:
    """Mean squared error of each sample, `[B]`, in fp32 or what is finer."""
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    losses = functional.mse_loss(prediction.to(dtype), target.to(dtype), reduction="none")
    losses = losses.mean(dim=(1, 2, 3))
    return losses if weights is None else losses * weights
