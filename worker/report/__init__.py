"""What a person gets to see of a finished job: the report, the model card, the preview sheet."""
