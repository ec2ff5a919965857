"""What a model does with a text, gathered once: diagonal Fisher information, inner products of inputs."""
