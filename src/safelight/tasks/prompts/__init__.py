"""Prompts from files: styles, wildcards, lists; and a prompt explained. Only `explain` needs torch."""
