"""Training: one loop for every recipe, its data, and the recipes.

config.py    what the loop can be told (no torch: the command line's options come from it)
loop.py      `train(recipe, config)`
recipe.py    what a recipe is
parts.py     a trained module with its optimizer and its averaged twin
ema.py       the averaged twin
batches.py   batches made ahead in threads, and moved to the device
store.py     checkpoints: written whole or not at all, verified before they are trusted
progress.py  the bar on stderr and TensorBoard's curves
stopping.py  SIGTERM and SIGINT: finish the step, save, leave
data.py      a folder of pictures with captions; which pictures are in batch i
"""
