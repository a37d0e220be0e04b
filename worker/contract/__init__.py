"""What crosses a boundary: the job message, its parameters, the webhooks, the errors, the pipe."""
