"""Hangs, stragglers, diverged replicas, stop requests: noticing what is wrong with a run, and naming it."""
