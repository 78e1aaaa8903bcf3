"""What goes on top of a model and comes off again: the LoRA family, textual inversion, hypernetworks."""
