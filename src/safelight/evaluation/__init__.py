"""Measuring: prompts never trained on, a judge that was trained apart, and honest numbers about both."""
