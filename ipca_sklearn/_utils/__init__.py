"""Helpers of several rooms; nothing here is public."""
