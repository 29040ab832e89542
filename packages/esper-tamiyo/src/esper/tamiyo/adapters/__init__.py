"""Adapters that put the controller into other people's trainers; each needs the extra of its name."""
