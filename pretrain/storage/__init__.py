"""Files: object stores with retries, atomic publishing, safetensors."""
