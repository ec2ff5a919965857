"""Models on disk and in memory: safetensors in and out, streamed, and atomic writing."""
