"""Messages in and out of RabbitMQ; knows nothing of training."""
