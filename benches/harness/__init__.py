"""Poolers side by side: how they are started, loaded and measured, and the tables that come of it."""
