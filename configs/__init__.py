"""Experiment configs: one file a task, `get_config(arguments)` returns a ConfigDict."""
