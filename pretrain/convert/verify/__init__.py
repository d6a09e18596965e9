"""Verification that an export computes the same logits and token ids as the checkpoint."""
