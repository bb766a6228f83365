"""Runs: models, methods, facts and seeds edited and measured by one command, which may be killed and goes on."""
