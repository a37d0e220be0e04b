"""lora-worker: RabbitMQ jobs in, Stable Diffusion LoRA adapters out."""
