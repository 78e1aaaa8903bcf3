"""What can be asked for, and what answers it: requests, the model, pictures with their metadata."""
