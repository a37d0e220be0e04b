"""lora-worker: RabbitMQ jobs in, Stable Diffusion LoRA adapters out."""

__version__ = "0.1.0"
