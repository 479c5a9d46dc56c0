"""Scoring methods: how good the model in service is on what people have said meanwhile."""
