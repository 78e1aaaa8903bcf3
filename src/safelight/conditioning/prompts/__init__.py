"""The prompt language: text alone, so that nothing here waits for torch.

In the order of reading: `tags` and comments are taken out, `prompt` splits at AND, `edits` says what stands there at
every step, `emphasis` what weighs how much of that, `chunks` what a text tower reads at once.
"""
