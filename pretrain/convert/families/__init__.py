"""Stock architectures of transformers that can hold our models: what each holds, and how. Start with choose.py."""
