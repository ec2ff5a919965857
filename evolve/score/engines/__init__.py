"""Inference engines that stay hot: vllm and hf."""
